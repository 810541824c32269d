# SPDX-License-Identifier: Apache-2.0
[ -n "$PYTHON" ] || exit 77
moe-convert convert fx/olmoe out --ep 2 --quiet
"$PYTHON" -c "import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getpid(), signal.SIGINT)
os.execvp(\"moe-convert\", \"moe-convert verify out\".split())"
