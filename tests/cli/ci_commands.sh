#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The commands of ci/: the action's step, GitLab's script and the pre-commit
# hook, taken out of their files and run as those systems would.
#
# usage: ci_commands.sh [build]    build: let the action build the program too
# From the environment: MOEC_CONVERT, MOEC_ROOT.
set -eu
root=$MOEC_ROOT
program=$MOEC_CONVERT
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
unset GITHUB_OUTPUT GITHUB_STEP_SUMMARY MOEC_PROGRAM MOEC_PATH MOEC_EP
mkdir bin
ln -s "$program" bin/moe-convert
bad=0
complain() {
    echo "$*"
    bad=1
}

cp -r "$root/fixtures/checkpoints/mixtral" 'good one'
cp -r 'good one' broken
printf '#' | dd of=broken/model-00002-of-00003.safetensors bs=1 seek=9 \
    conv=notrunc status=none

# The step of the action: its `run`, its `env` with the inputs put in.
action=$root/ci/action.yml
sed -n '/^      run: |$/,$s/^        //p' "$action" >step.sh
[ -s step.sh ] || complain 'action.yml: no run'
step() { # INPUT=VALUE...: run the step; its exit code in $code
    (
        PATH=$tmp/bin:$PATH
        GITHUB_ACTION_PATH=$root/ci
        GITHUB_OUTPUT=$tmp/output
        GITHUB_STEP_SUMMARY=$tmp/summary.md
        export PATH GITHUB_ACTION_PATH GITHUB_OUTPUT GITHUB_STEP_SUMMARY
        sed -n '/^      env:$/,/^      run:/s/^        \(MOEC_[A-Z_]*\): \(.*\)/\1 \2/p' \
            "$action" >environment
        [ "$(grep -c inputs environment)" = \
            "$(sed -n '/^inputs:/,/^outputs:/p' "$action" |
                grep -c '^  [a-z]*:$')" ] || echo 'an input goes nowhere' >&2
        while read -r name value; do
            case $value in
            '${{ inputs.'*)
                input=${value#*inputs.}
                input=${input% \}\}}
                # The default as the file has it.
                value=$(sed -n "/^  $input:\$/,/^  [a-z]*:\$/s/^    default: //p" \
                    "$action" | tr -d '"')
                for pair; do
                    [ "${pair%%=*}" != "$input" ] || value=${pair#*=}
                done
                ;;
            esac
            export "$name=$value"
        done <environment
        exec sh step.sh
    ) >stdout 2>stderr && code=0 || code=$?
}

step 'path=good one' ep=2 redundant=2
[ $code = 0 ] || complain "action: a good checkpoint: $code: $(cat stderr)"
[ ! -s stderr ] || complain "action: $(cat stderr)"
for file in moec-reports/check.log moec-reports/check.sarif \
    moec-reports/check.xml moec-reports/check.json summary.md output; do
    [ -s "$file" ] || complain "action: no $file"
done
grep -q '^sarif=moec-reports/check.sarif$' output || complain "$(cat output)"
grep -q passed summary.md || complain 'action: no summary'

step 'path=good one' 'args=--matrix
2,3:0' reports=other summary=false
[ $code = 1 ] || complain "action: a matrix with a hole: $code"
line=$(sed -n 's/^::error file=other.check.log,line=\([0-9]*\),title=MOE-P06.*/\1/p' stdout)
sed -n "${line:-1}p" other/check.log | grep -q MOE-P06 ||
    complain "action: no annotation with its line: $(cat stdout)"
grep -c '^### ' summary.md | grep -qx 1 || complain 'action: two summaries'

step path=broken ep=2
[ $code = 3 ] || complain "action: a broken checkpoint: $code"
grep -q '^::error file=moec-reports/check.log,line=1,title=MOE-H04 json::broken/model-00002' \
    stdout || complain "action: $(cat stdout)"

# No value is a command or an option.
# shellcheck disable=SC2016 # for somebody else to expand, or not
step 'path=$(touch hacked)' 'ep=2; touch hacked' 'args=`touch hacked`'
[ $code = 2 ] || complain "action: a command for a value: $code"
step path=--mutate
[ $code = 3 ] || complain "action: an option for a path: $code"
[ ! -e hacked ] || complain 'action: ran a value'

# GitLab's script, with the variables that its comment names.
gitlab=$root/ci/gitlab.yml
sed -n '/^  script:$/,/^  artifacts:$/s/^    - //p' "$gitlab" >script.sh
[ -s script.sh ] || complain 'gitlab.yml: no script'
rm -rf moec-reports
(
    PATH=$tmp/bin:$PATH MOEC_CI=$root/ci MOEC_PATH=broken MOEC_EP=2
    export PATH MOEC_CI MOEC_PATH MOEC_EP
    sed -n 's/^    \(MOEC_[A-Z_]*\): \(.*\)/\1=\2/p' "$gitlab" >variables
    while read -r pair; do
        export "${pair?}"
    done <variables
    exec sh -e script.sh
) >stdout 2>stderr && code=0 || code=$?
[ $code = 3 ] || complain "gitlab: $code"
junit=$(sed -n 's/^      junit: //p' "$gitlab")
grep -q 'MOE-H04' "$junit" || complain 'gitlab: no JUnit report'

# The hook: entry and files as pre-commit reads them.
hooks=$root/.pre-commit-hooks.yaml
entry=$(sed -n 's/^  entry: //p' "$hooks")
files=$(sed -n 's/^  files: //p' "$hooks")
[ -x "$root/$entry" ] || complain "$entry cannot be run"
hook() { # WORDS... -- DIR: the hook over what a commit of DIR would give
    (
        PATH=$tmp/bin:$PATH
        export PATH
        for last; do :; done
        find "$last" -type f | grep -E "$files" | sort >list
        while IFS= read -r file; do
            set -- "$@" "$file"
        done <list
        exec "$root/$entry" "$@"
    ) >stdout 2>stderr && code=0 || code=$?
}
hook 'good one'
[ $code = 0 ] || complain "hook: a good checkpoint: $code: $(cat stderr)"
hook --ep 2 --redundant 2 -- 'good one'
[ $code = 0 ] || complain "hook: options: $code: $(cat stderr)"
hook --ep 3 -- 'good one'
[ $code = 1 ] || complain "hook: ranks that do not divide: $code"
grep -q MOE-P06 stderr || complain 'hook: does not say why'
hook broken
[ $code = 1 ] || complain "hook: a broken checkpoint: $code"
mkdir other-project
echo '{}' >other-project/config.json
hook other-project
[ $code = 0 ] || complain "hook: somebody else's config.json: $code"

if [ "${1:-}" = build ]; then
    rm bin/moe-convert
    git clone -q "$root" clone
    root=$tmp/clone
    step 'path=good one' ep=2
    [ $code = 0 ] || complain "action: builds: $code: $(cat stderr)"
    grep -q 'building it' stderr || complain 'action: found a program somewhere'
fi
exit $bad
