# SPDX-License-Identifier: Apache-2.0
# SIGTERM pending before the program starts: it arrives as soon as the program
# listens, so the test needs no luck.
[ -n "$PYTHON" ] || exit 77
"$PYTHON" -c "import os, signal
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
os.execvp(\"moe-convert\", \"moe-convert convert fx/olmoe out --ep 4\".split())"
code=$?
ls
exit $code
