#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# `validate --mpi` under a real mpirun: the outputs of one process bit for bit,
# each process on a directory with the files of its own rank alone, as if on a
# host of its own; a missing and a swapped rank file and a wrong number of
# processes are named; a process that dies takes the others along.
#
#   cmake --build build/dev --target cluster      sh mpi_validate.sh
#
# From the environment: MOEC_CONVERT, the program. Installs nothing: without an
# mpirun or the plug-in it says so and is done. Debian: openmpi-bin,
# libopenmpi-dev.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
fixtures=$here/../../fixtures/checkpoints

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1

fail() {
    echo "FAIL: $*"
    tail -n 20 log text 2>/dev/null
    exit 1
}

if ! command -v mpirun >/dev/null; then
    echo "skipped: there is no mpirun"
    exit 0
fi
# Tells the plug-in that is not there from all else.
"$program" validate none --source none --mpi >log 2>&1
if [ $? -eq 7 ]; then
    echo "skipped: $(head -n 1 log)"
    exit 0
fi

mpi="mpirun --allow-run-as-root --oversubscribe --mca btl self,vader"
mpi="$mpi --mca plm isolated"

# Process k sees OUT.k, with the files of rank k and those of none.
cat >worker <<END
#!/bin/sh
exec "$program" validate "\$1.\$OMPI_COMM_WORLD_RANK" --source "\$2" --mpi \
    --tokens 96 \$3
END
chmod 755 worker

part() { # OUT RANK: the files of all ranks but RANK are not there
    rm -rf "$1.$2"
    cp -r "$1" "$1.$2"
    for file in "$1.$2"/experts-rank-*; do
        case ${file##*/} in
        experts-rank-0000$2-*) ;;
        *) rm "$file" ;;
        esac
    done
}

# Open MPI 4.1 sometimes says "exiting improperly" of a program that does nothing
# but MPI_Init and MPI_Finalize (2 of 60 runs on a busy machine): once more then.
validate() { # PROCESSES SRC [OPTION]: exit code; prints into `text`
    for _ in 1 2 3 4; do
        # shellcheck disable=SC2086 # words
        $mpi -n "$1" ./worker out "$fixtures/$2" ${3:-} >text 2>log
        code=$?
        grep -q "exiting improperly" log || break
    done
    return $code
}

digests() { # FILE
    sed -n 's/^ *"output_sha256": "\([0-9a-f]*\)".*/\1/p' "$1"
}

for src in deepseek_v3 qwen2_moe gpt_oss; do
    for w in 2 4; do
        rm -rf out out.*
        "$program" convert "$fixtures/$src" out --ep $w --redundant $w \
            --quiet 2>log || fail "convert $src"
        "$program" validate out --source "$fixtures/$src" --tokens 96 --json \
            >one 2>log || fail "$src: one process: exit $?"
        for k in $(seq 0 $((w - 1))); do
            part out "$k"
        done
        validate $w $src --json || fail "$src, $w processes: exit $?"
        [ -n "$(digests one)" ] || fail "$src: no digests"
        [ "$(digests one)" = "$(digests text)" ] ||
            fail "$src, $w processes: other outputs than of one"
        grep -q '"bytes_sent": [1-9]' text || fail "$src: nothing was sent"
        validate $w $src || fail "$src, $w processes: exit $?"
        grep -q 'exchanged .* columns by rank' text || fail "no balance"
        echo "$src: $w processes give the outputs of one"
    done
done

# From here on with the 4 ranks of the last one.
rm out.2/experts-rank-00002-*
validate 4 gpt_oss
code=$?
[ $code -eq 1 ] || fail "a missing rank file: exit $code"
grep -q 'M05.*rank-00002.*rank 2' text || fail "the missing file is not named"
echo "a missing rank file is named"
part out 2

a=$(cd out && echo experts-rank-00001-*)
b=$(cd out && echo experts-rank-00003-*)
cp "out/$b" "out.1/$a"
cp "out/$a" "out.3/$b"
validate 4 gpt_oss
code=$?
[ $code -eq 1 ] || fail "swapped rank files: exit $code"
grep -q "M06.*rank-00001.*rank-00003.*rank 1" text || fail "rank 1 not named"
grep -q "M06.*rank-00003.*rank-00001.*rank 3" text || fail "rank 3 not named"
echo "swapped rank files are named"
part out 1
part out 3

for n in 1 3; do
    validate $n gpt_oss
    code=$?
    [ $code -eq 2 ] || fail "$n processes: exit $code"
    grep -q "4 ranks, and there are $n processes" log || fail "$n: not named"
done
echo "another number of processes is named"

mv out.2 gone
validate 4 gpt_oss
code=$?
[ $code -eq 3 ] || fail "no directory on one host: exit $code"
grep -q "(rank 2)" log || fail "the host without a directory is not named"
mv gone out.2
echo "a host that sees no conversion is named"

cat >mortal <<END
#!/bin/sh
[ "\$OMPI_COMM_WORLD_RANK" != 1 ] || exec timeout -s KILL 0.02 ./worker "\$@"
exec ./worker "\$@"
END
chmod 755 mortal
timeout 60 $mpi -n 4 ./mortal out "$fixtures/gpt_oss" >text 2>log
code=$?
[ $code -ne 0 ] && [ $code -ne 124 ] || fail "a death: exit $code"
echo "a process that dies takes the others along"
echo ok
