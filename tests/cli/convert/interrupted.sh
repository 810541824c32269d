# SPDX-License-Identifier: Apache-2.0
# SIGINT pending before the program starts: it arrives as soon as the program
# listens, so the test needs no luck.
[ -n "$PYTHON" ] || exit 77
"$PYTHON" -c "import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getpid(), signal.SIGINT)
os.execvp(\"moe-convert\", \"moe-convert convert fx/olmoe out --ep 4\".split())"
code=$?
ls
exit $code
