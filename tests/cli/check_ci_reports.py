# SPDX-License-Identifier: Apache-2.0
"""The forms that check writes for CI systems, read back by other parsers."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

if "--no-schema" in sys.argv:
    jsonschema = None
    print("no jsonschema: SARIF and policies are not held against schemas")
else:
    import jsonschema

program = os.environ["MOEC_CONVERT"]
root = os.environ["MOEC_ROOT"]
fixtures = os.path.join(root, "fixtures", "checkpoints")
bad = 0


def complain(text):
    global bad
    bad += 1
    print(text)


def run(*args, cwd=None):
    p = subprocess.run([program, *args], cwd=cwd, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
    return p.returncode, p.stdout


def load_schema(*path):
    with open(os.path.join(root, *path), encoding="utf-8") as f:
        return json.load(f)


def make_validator(schema):
    if jsonschema is None:
        return None
    cls = jsonschema.validators.validator_for(schema)
    cls.check_schema(schema)
    return cls(schema)


sarif_schema = make_validator(load_schema("fixtures", "schemas",
                                          "sarif-2.1.0.json"))
policy_schema = make_validator(load_schema("convert", "cli",
                                           "policy-1.schema.json"))


def read_sarif(text, what):
    doc = json.loads(text)
    if sarif_schema is not None:
        for error in sarif_schema.iter_errors(doc):
            complain(f"{what}: SARIF: {list(error.absolute_path)}: "
                     f"{error.message[:200]}")
    rules = doc["runs"][0]["tool"]["driver"]["rules"]
    for result in doc["runs"][0]["results"]:
        if rules[result["ruleIndex"]]["id"] != result["ruleId"]:
            complain(f"{what}: SARIF: a rule's index is another's")
    return doc


annotation = re.compile(
    r"^::(error|warning|notice) file=([^,:]+),line=(\d+),title=(MOE-\w+) "
    r"([\w-]+)::(.*)$")


def annotations(text, what):
    found = []
    for line in text.split("\n"):
        if line.lstrip().startswith("::"):
            m = annotation.match(line)
            if m is None:
                complain(f"{what}: no annotation: {line[:200]}")
            else:
                found.append(m)
        if "##[" in line:
            complain(f"{what}: a runner takes this for a command: {line}")
    return found


# ------------------------------------------------------------- mutations

def mutations_end_in_one_annotation(tmp):
    """Each kind: one annotation with rule, file and line of the log."""
    _, text = run("check", "--mutate", "list", "--json")
    kinds = json.loads(text)["kinds"]
    if len(kinds) != 19:
        complain(f"{len(kinds)} kinds of mutations, 19 were expected")
    trees = [("deepseek_v3_fp8", "2", "2"), ("gpt_oss", "2", "2"),
             ("olmoe", "2", "0"), ("deepseek_v3", "2", "2"),
             ("qwen3_moe", "2", "0"), ("glm4_moe", "2", "2")]
    for kind in kinds:
        if not any(one_annotation(kind, tree, tmp) for tree in trees):
            complain(f"{kind['kind']}: can be made of no fixture")


def one_annotation(kind, tree, tmp):
    name, ep, redundant = tree
    path = os.path.join(fixtures, name)
    if not os.path.isdir(path):
        return False
    topology = ["--ep", ep, "--redundant", redundant]
    if kind["level"] == "digests": # bytes can be wrong only where some are
        out = os.path.join(tmp, "mutated-" + name)
        if not os.path.isdir(out):
            run("convert", path, out, *topology, "--quiet")
        path, topology = out, []
    log = os.path.join(tmp, "mutation.log")
    code, text = run("check", path, *topology, "--mutate", kind["kind"],
                     "--format", "github", "--report", "text=" + log,
                     "--quiet")
    if code == 3:
        return False
    what = f"{kind['kind']} of {name}"
    if code != 1:
        complain(f"{what}: exit {code}")
    found = annotations(text.decode(), what)
    if len(found) != 1:
        complain(f"{what}: {len(found)} annotations")
        return True
    level, file, line, rule, _, message = found[0].groups()
    if (level, rule) != ("error", kind[kind["level"] + "_rule"]):
        complain(f"{what}: named as {level} {rule}")
    if file != log:
        complain(f"{what}: stands in {file}")
    with open(log, encoding="utf-8") as f:
        lines = f.read().split("\n")
    if f"[{rule} " not in lines[int(line) - 1]:
        complain(f"{what}: line {line} of the log is {lines[int(line) - 1]}")
    if not re.match(r"[^ ]*(\.safetensors|\.json): ", message):
        complain(f"{what}: names no file: {message}")
    return True


# ------------------------------------------------------------- all forms

def forms(path, options, what, want, cwd=None):
    """Every form of one run, parsed; the same bytes twice."""
    texts = {}
    for form in ("text", "json", "sarif", "junit", "github", "markdown",
                 "prometheus"):
        args = ["check", path, *options, "--format", form, "--quiet"]
        code, text = run(*args, cwd=cwd)
        again = run(*args, cwd=cwd)
        if (code, text) != again:
            complain(f"{what}: {form} differs from run to run")
        if code != want:
            complain(f"{what}: {form}: exit {code}, expected {want}")
        texts[form] = text.decode()
        if "\x1b" in texts[form] or "\x07" in texts[form]:
            complain(f"{what}: {form}: control characters")
    read_sarif(texts["sarif"], what)
    junit(texts["junit"], what)
    annotations(texts["github"], what)
    markdown(texts["markdown"], what)
    prometheus(texts["prometheus"], what)
    json.loads(texts["json"])
    return texts


def junit(text, what):
    suites = ElementTree.fromstring(text)
    tests = failures = errors = 0
    for suite in suites:
        cases = suite.findall("testcase")
        tests += len(cases)
        failures += len(suite.findall("testcase/failure"))
        errors += len(suite.findall("testcase/error"))
        if int(suite.get("tests")) != len(cases):
            complain(f"{what}: JUnit counts its tests wrongly")
    stated = tuple(int(suites.get(k)) for k in ("tests", "failures",
                                                "errors"))
    if stated != (tests, failures, errors):
        complain(f"{what}: JUnit says {stated}, has "
                 f"{(tests, failures, errors)}")


def markdown(text, what):
    if re.search(r"[<>]|@|(?<!\\)`", text):
        complain(f"{what}: Markdown: markup in {text[:300]}")
    columns = 0
    for line in text.split("\n"):
        n = len(re.findall(r"(?<!\\)\|", line))
        if n and columns and n != columns:
            complain(f"{what}: Markdown: {n} bars, not {columns}: {line}")
        columns = n


def prometheus(text, what):
    label = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
    sample = re.compile(r"^[a-z_]+\{%s(,%s)*\} -?\d+$" % (label, label))
    for line in text.rstrip("\n").split("\n"):
        if not line.startswith("#") and not sample.match(line):
            complain(f"{what}: Prometheus: {line[:200]}")


def damage(path):
    """Change one byte of a slot."""
    names = sorted(n for n in os.listdir(path) if "rank-00001" in n)
    with open(os.path.join(path, names[0]), "r+b") as f:
        f.seek(70000)
        byte = f.read(1)
        f.seek(70000)
        f.write(bytes([byte[0] ^ 255]))


def forms_of_what_is_there(tmp):
    clean = os.path.join(fixtures, "mixtral")
    out = os.path.join(tmp, "out")
    run("convert", os.path.join(fixtures, "deepseek_v3"), out, "--ep", "2",
        "--redundant", "2", "--quiet")
    forms(clean, ["--ep", "2"], "a clean source", 0)
    forms(clean, ["--ep", "1", "--redundant", "2", "--strict"], "a warning", 1)
    forms(out, ["--level", "headers"], "a clean conversion", 0)
    damage(out)
    texts = forms(out, [], "a damaged conversion", 1)
    if len(annotations(texts["github"], "damage")) != 1:
        complain("a damaged slot has not one annotation")
    other = os.path.join(tmp, "other")
    run("convert", os.path.join(fixtures, "olmoe"), other, "--ep", "2",
        "--quiet")
    damage(other) # T3 and T6 of one byte
    _, text = run("check", other, "--format", "github", "--quiet")
    if len(annotations(text.decode(), "damage")) != 1:
        complain("a damaged byte has not one annotation")
    broken = os.path.join(tmp, "broken")
    shutil.copytree(clean, broken)
    name = os.path.join(broken, "model-00002-of-00003.safetensors")
    with open(name, "r+b") as f:
        f.seek(9)
        f.write(b"#")
    texts = forms(broken, ["--ep", "2"], "a malformed header", 3)
    found = annotations(texts["github"], "a malformed header")
    if len(found) != 1 or not found[0].group(2).endswith("00003.safetensors"):
        complain("a malformed header is not named by its file")
    forms(clean, ["--matrix", "2,3:0,2"], "a matrix", 1)
    forms(clean, ["--ep", "2", "--mutate", "all"], "all mutations", 1)


def other_commands_write_the_same_forms(tmp):
    """verify and validate, to stdout and to files; in the sandbox too."""
    source = os.path.join(fixtures, "mixtral")
    out = os.path.join(tmp, "out")
    run("convert", source, out, "--ep", "2", "--quiet")
    for command in (["verify", out], ["validate", out, "--source", source,
                                      "--tokens", "1"]):
        file = os.path.join(tmp, command[0] + ".sarif")
        code, text = run(*command, "--quiet", "--format", "junit", "--report",
                         "sarif=" + file, "--report", "text=/dev/null")
        if code != 0:
            complain(f"{command[0]}: exit {code}")
        junit(text.decode(), command[0])
        with open(file, encoding="utf-8") as f:
            read_sarif(f.read(), command[0])
    damage(out)
    code, text = run("verify", out, "--format", "github")
    if code != 1 or len(annotations(text.decode(), "verify")) != 1:
        complain(f"verify of damage: exit {code}")


def names_that_break_out(tmp):
    """A directory and a tensor whose names are markup everywhere."""
    name = ("x\n::error::y <b>&|%\"'`*_[z](http://q)@all##[group],:;"
            "\x1b[31m\x07\u0085]]>{}\\")
    path = os.path.join(tmp, name)
    shutil.copytree(os.path.join(fixtures, "mixtral"), path)
    texts = forms(name, ["--ep", "1", "--redundant", "2", "--strict"],
                  "a hostile name", 1, cwd=tmp)
    if any(re.search(r"^ *::error::y", texts[k], re.M) for k in texts):
        complain("a hostile name became a command")
    for form in ("text", "github", "junit", "markdown", "prometheus"):
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85]", texts[form]):
            complain(f"a hostile name: {form}: control characters")
    shard = os.path.join(path, "model-00002-of-00003.safetensors")
    with open(shard, "rb") as f:
        data = f.read()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    first = next(k for k in header if k != "__metadata__")
    header["::error::<t>|@\x1b`\n%"] = header.pop(first)
    text = json.dumps(header).encode()
    with open(shard, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + data[8 + n:])
    forms(name, ["--ep", "2"], "a hostile tensor", 3, cwd=tmp)


# ------------------------------------------------- policies and baselines

def write(path, doc):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(doc, f)


def policies_mean_what_their_schema_says(tmp):
    """Refused by us and by the schema, or by neither."""
    file = os.path.join(tmp, "policy.json")
    good = {"schema": "moec.policy/1"}
    target = {"name": "a", "ep": 2}
    cases = [
        (good, True), ({}, False), ({"schema": "moec.policy/2"}, False),
        ({**good, "severity": {"MOE-P09": "off"}}, True),
        ({**good, "severity": {"MOE-P09": "loud"}}, False),
        ({**good, "severity": ["MOE-P09"]}, False),
        ({**good, "max_rank_bytes": 10 ** 12}, True),
        ({**good, "max_rank_bytes": 0}, False),
        ({**good, "max_rank_bytes": "1"}, False),
        ({**good, "max_imbalance": 1.5}, True),
        ({**good, "max_imbalance": 0.5}, False),
        ({**good, "skip": []}, True), ({**good, "skip": [1]}, False),
        ({**good, "targets": [target]}, True),
        ({**good, "targets": [{"name": "a"}]}, False),
        ({**good, "targets": [{**target, "ep": 0}]}, False),
        ({**good, "targets": [{**target, "w13_order": "up"}]}, False),
        ({**good, "targets": [{**target, "gpus": 1}]}, False),
        ({**good, "max_rank_byte": 1}, False),
        ({**good, "description": "ours", "$schema": "x"}, True),
        ([], False),
    ]
    for doc, fine in cases:
        write(file, doc)
        code, _ = run("check", os.path.join(fixtures, "mixtral"), "--ep", "2",
                      "--policy", file, "--quiet")
        if (code != 3) != fine:
            complain(f"policy {doc}: exit {code}")
        if policy_schema is not None and policy_schema.is_valid(doc) != fine:
            complain(f"policy {doc}: the schema says {not fine}")


def policies_decide(tmp):
    source = os.path.join(fixtures, "mixtral")
    file = os.path.join(tmp, "policy.json")
    good = {"schema": "moec.policy/1"}
    cases = [
        ({"severity": {"MOE-P09": "error"}}, ["--redundant", "2"], 1,
         "MOE-P09"),
        ({"severity": {"replica-same-rank": "off"}},
         ["--redundant", "2", "--strict"], 0, None),
        ({"severity": {"MOE-I15": "error"}}, [], 1, "MOE-I15"),
        ({"max_rank_bytes": 4096}, [], 1, "MOE-L03"),
        ({"max_rank_bytes": 1 << 40}, [], 0, None),
        ({"max_imbalance": 1.01}, ["--ep", "2", "--redundant", "4"], 0, None),
        ({"max_imbalance": 1.01}, ["--ep", "5", "--redundant", "2"], 1,
         "MOE-L04"),
        ({"targets": [{"name": "s", "ep": 4, "redundant": 0}]}, [], 0, None),
        ({"targets": [{"name": "s", "ep": 3}]}, [], 1, "MOE-P06"),
    ]
    for doc, options, want, rule in cases:
        write(file, {**good, **doc})
        code, text = run("check", source, "--policy", file, "--json",
                         "--quiet", *options)
        found = json.loads(text)
        rules = {f["rule"] for f in found["findings"] + found["problems"]
                 if f["severity"] == "error"}
        if code != want or (rule is not None and rules != {rule}):
            complain(f"policy {doc}: exit {code}, errors {rules}")
    mtp = os.path.join(fixtures, "glm4_moe")
    write(file, {**good, "skip": []})
    out = os.path.join(tmp, "no-mtp")
    for path in (mtp, os.path.join(fixtures, "deepseek_v3")):
        code, text = run("check", path, "--no-mtp", "--policy", file, "--json")
        if code == 1:
            rules = [f["rule"] for f in json.loads(text)["findings"]
                     if f["severity"] == "error"]
            if rules != ["MOE-L05"]:
                complain(f"--no-mtp: {rules}")
            write(file, {**good, "skip": ["*"]})
            if run("check", path, "--no-mtp", "--policy", file)[0] != 0:
                complain("--no-mtp with skip *: not 0")
            break
    else:
        complain("no fixture has MTP tensors to leave out")
    out = os.path.join(tmp, "out2")
    run("convert", source, out, "--ep", "2", "--quiet")
    write(file, {**good, "targets": [
        {"name": "right", "ep": 2, "w13_order": "gate-up"},
        {"name": "wrong", "ep": 4, "w13_order": "up-gate"}]})
    code, text = run("check", out, "--level", "headers", "--policy", file,
                     "--json")
    rules = [f["rule"] for f in json.loads(text)["findings"]]
    if code != 1 or rules != ["MOE-L06", "MOE-L06"]:
        complain(f"targets of a conversion: exit {code}, {rules}")


def a_baseline_hides_what_it_knows(tmp):
    source = os.path.join(fixtures, "mixtral")
    base = os.path.join(tmp, "base.json")
    options = ["--ep", "1", "--strict", "--quiet"]
    code, _ = run("check", source, "--redundant", "2", *options, "--report",
                  "json=" + base)
    if code != 1:
        complain(f"before the baseline: exit {code}")
    code, _ = run("check", source, "--redundant", "2", *options, "--baseline",
                  base)
    if code != 0:
        complain(f"with the baseline: exit {code}")
    with open(base, encoding="utf-8") as f:
        doc = json.load(f)
    # Others come and go: one of three is taken out, and only it fails.
    gone = doc["findings"].pop(1)
    write(base, doc)
    code, text = run("check", source, "--redundant", "2", *options,
                     "--baseline", base, "--format", "sarif")
    states = [(r["baselineState"], r["partialFingerprints"]["moecFinding/v1"])
              for r in read_sarif(text, "a baseline")["runs"][0]["results"]
              if r["level"] == "warning"]
    new = [print_ for state, print_ in states if state == "new"]
    if code != 1 or len(states) != 3 or new != [gone["fingerprint"]]:
        complain(f"one that is not in the baseline: exit {code}, {states}")
    write(base, {"schema": "moec.check/1"})
    code, _ = run("check", source, *options, "--baseline", base)
    if code != 3:
        complain(f"a baseline without findings: exit {code}")


def twenty_combinations_take_one_parse(tmp):
    code, text = run("check", os.path.join(fixtures, "deepseek_v3"),
                     "--matrix", "1,2,4,8:0,8,16,32,48", "--json", "--quiet")
    doc = json.loads(text)
    if code != 0 or len(doc["combinations"]) != 20:
        complain(f"a matrix: exit {code}, {len(doc['combinations'])}")
    for c in doc["combinations"]:
        if c["slots_per_rank"] * c["ep"] != 16 + c["redundant"]:
            complain(f"a matrix: {c}")
    alone = run("check", os.path.join(fixtures, "deepseek_v3"), "--matrix",
                "1,2,4,8:0,8,16,32,48", "--json", "--quiet", "--threads", "1")
    if alone[1] != text:
        complain("a matrix depends on the threads")


with tempfile.TemporaryDirectory() as scratch:
    for test in (mutations_end_in_one_annotation, forms_of_what_is_there,
                 other_commands_write_the_same_forms,
                 names_that_break_out, policies_mean_what_their_schema_says,
                 policies_decide, a_baseline_hides_what_it_knows,
                 twenty_combinations_take_one_parse):
        below = os.path.join(scratch, test.__name__)
        os.mkdir(below)
        test(below)
print(f"{bad} complaints")
sys.exit(bad != 0)
