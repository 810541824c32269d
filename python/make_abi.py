#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write moec/_abi.py from the public headers: constants, enums, structs with
their initial values, and the signature of every function. Made by every build
of the package, so that nothing of the C interface is written twice.

usage: make_abi.py ROOT OUT.py     Needs a C compiler and pycparser; exits 77
where pycparser is missing.
"""
import os
import re
import subprocess
import sys
import tempfile

try:
    from pycparser import c_ast, c_parser
except ImportError:
    print("make_abi.py: this python has no pycparser", file=sys.stderr)
    sys.exit(77)

# What pycparser need not know of the system's headers.
FAKES = {
    "stdint.h": "".join(f"typedef {c} {n};\n" for n, c in (
        ("int8_t", "signed char"), ("uint8_t", "unsigned char"),
        ("int16_t", "short"), ("uint16_t", "unsigned short"),
        ("int32_t", "int"), ("uint32_t", "unsigned int"),
        ("int64_t", "long"), ("uint64_t", "unsigned long"))) +
    "#define UINT32_MAX 0xffffffffu\n#define UINT64_C(x) x##UL\n"
    "#define INT64_C(x) x##L\n#define UINT32_C(x) x##U\n"
    "#define UINT16_MAX 65535\n#define UINT8_MAX 255\n"
    "#define UINT64_MAX 0xffffffffffffffffUL\n#define SIZE_MAX UINT64_MAX\n",
    "stddef.h": "typedef unsigned long size_t;\n#define NULL 0\n",
    "stdarg.h": "typedef int va_list;\n",
    "stdbool.h": "",
}
SCALARS = {
    "void": "None", "char": "c_char", "signed char": "c_int8",
    "unsigned char": "c_uint8", "short": "c_int16", "int": "c_int",
    "unsigned short": "c_uint16", "unsigned int": "c_uint32",
    "long": "c_int64", "unsigned long": "c_uint64", "float": "c_float",
    "double": "c_double", "int8_t": "c_int8", "uint8_t": "c_uint8",
    "int16_t": "c_int16", "uint16_t": "c_uint16", "int32_t": "c_int32",
    "uint32_t": "c_uint32", "int64_t": "c_int64", "uint64_t": "c_uint64",
    "size_t": "c_size_t",
}


class Writer:
    def __init__(self):
        self.lines, self.structs, self.done = [], {}, set()
        self.aliases, self.values, self.opaque = {}, {}, set()

    # -------------------------------------------------------- expressions
    def value(self, e):
        if isinstance(e, c_ast.Constant):
            return float(e.value.rstrip("fF")) \
                if e.type in ("float", "double") \
                else int(e.value.rstrip("uUlL"), 0)
        if isinstance(e, c_ast.ID):
            return self.values[e.name]
        if isinstance(e, c_ast.Cast):
            return self.value(e.expr)
        if isinstance(e, c_ast.UnaryOp) and e.op == "-":
            return -self.value(e.expr)
        if isinstance(e, c_ast.UnaryOp) and e.op == "sizeof":
            return "sizeof"
        if isinstance(e, c_ast.BinaryOp):
            a, b = self.value(e.left), self.value(e.right)
            return {"<<": lambda: a << b, "|": lambda: a | b,
                    "+": lambda: a + b, "-": lambda: a - b,
                    "*": lambda: a * b}[e.op]()
        raise ValueError(type(e).__name__)

    # -------------------------------------------------------------- types
    def named(self, name):
        if name in SCALARS:
            return "c." + SCALARS[name] if name != "void" else "None"
        return self.aliases.get(name, name)

    def type(self, t, argument=False):
        if isinstance(t, c_ast.TypeDecl):
            inner = t.type
            if isinstance(inner, c_ast.IdentifierType):
                return self.named(" ".join(inner.names))
            if isinstance(inner, c_ast.Enum):
                return "c.c_int"
            return inner.name
        if isinstance(t, c_ast.ArrayDecl):
            if argument:
                return "c.c_void_p"
            return f"{self.type(t.type)} * {self.value(t.dim)}"
        if isinstance(t, c_ast.PtrDecl):
            if isinstance(t.type, c_ast.FuncDecl):
                return self.function(t.type)
            of = self.type(t.type)
            if of == "c.c_char":
                return "c.c_char_p"
            if of in self.structs:
                return f"c.POINTER({of})"
            return "c.c_void_p"
        raise ValueError(type(t).__name__)

    def function(self, f):
        args = [self.type(p.type, True) for p in f.args.params] \
            if f.args else []
        if args == ["None"]:
            args = []
        return f"c.CFUNCTYPE({', '.join([self.type(f.type)] + args)})"

    # ------------------------------------------------------- declarations
    def enum(self, e):
        n = -1
        for item in e.values.enumerators:
            n = self.value(item.value) if item.value else n + 1
            self.values[item.name] = n
            self.lines.append(f"{item.name} = {n}")

    def struct(self, name, s):
        for d in s.decls:
            inner = d.type
            while isinstance(inner, c_ast.ArrayDecl):
                inner = inner.type
            if isinstance(inner, c_ast.TypeDecl) and \
                    isinstance(inner.type, c_ast.Struct) and inner.type.decls:
                part = f"{name}_{d.name}"
                inner.type.name = part
                self.struct(part, inner.type)
        self.structs[name] = True
        self.lines.append(f"\n\nclass {name}(_Struct):\n    pass\n")
        fields = ",\n    ".join(f'("{d.name}", {self.type(d.type)})'
                                for d in s.decls)
        self.lines.append(f"\n{name}._fields_ = [\n    {fields}]")

    def initial(self, name, init):
        fields = [d.name for d in self.fields[name]]
        got, at = [], 0
        for e in init.exprs:
            if isinstance(e, c_ast.NamedInitializer):
                at, e = fields.index(e.name[0].name), e.expr
            v = 0 if isinstance(e, c_ast.InitList) else self.value(e)
            if v not in (0, "sizeof"):
                got.append(f'"{fields[at]}": {v}')
            at += 1
        self.lines.append(f"{name}._initial_ = {{{', '.join(got)}}}")


def source(root):
    """The preprocessed headers and the INIT macros as variables."""
    include = os.path.join(root, "loader", "include")
    with tempfile.TemporaryDirectory() as tmp:
        for name, text in FAKES.items():
            with open(os.path.join(tmp, name), "w") as f:
                f.write(text)
        main = os.path.join(tmp, "main.c")
        with open(main, "w") as f:
            f.write("#include <moec/moec.h>\n")
        cc = [os.environ.get("CC", "cc"), "-nostdinc", "-I", tmp, "-I",
              include, "-D__attribute__(x)=", "-D__asm__(x)="]
        macros = subprocess.run(cc + ["-dM", "-E", main], check=True,
                                capture_output=True, text=True).stdout
        names = sorted(re.findall(r"^#define (MOEC_\w+)", macros, re.M))
        constants = []
        with open(main, "a") as f:
            for n in names:
                body = re.search(rf"^#define {n}(.*)$", macros, re.M)[1]
                if body.startswith("("):
                    if body.startswith("(x") or not re.match(
                            r"\([\w() <*+|-]+\)\s*(<<.*)?$", body):
                        continue
                if n.endswith("_INIT"):
                    t = n[:-len("_INIT")].lower()
                    f.write(f"{t} {t}__init = {n};\n")
                elif re.match(r"^\s*[\w() <*+|-]*\d[\w() <*+|-]*$", body) \
                        and "__" not in body:
                    f.write(f"int {n}__value = {n};\n")
                    constants.append(n)
        text = subprocess.run(cc + ["-E", "-P", main], check=True,
                              capture_output=True, text=True).stdout
    return re.sub(r"\b(static|extern)?\s*inline\b", "static", text)


def generate(root):
    w = Writer()
    w.fields = {}
    tree = c_parser.CParser().parse(source(root))
    functions = []
    for d in tree.ext:
        if isinstance(d, c_ast.Typedef):
            inner = d.type
            if isinstance(inner, c_ast.TypeDecl) and \
                    isinstance(inner.type, c_ast.Enum):
                w.enum(inner.type)
                w.aliases[d.name] = "c.c_int"
            elif isinstance(inner, c_ast.TypeDecl) and \
                    isinstance(inner.type, c_ast.Struct):
                if inner.type.decls:
                    w.fields[d.name] = inner.type.decls
                    w.struct(d.name, inner.type)
                # else opaque: always behind a pointer
            elif d.name not in SCALARS:
                w.lines.append(f"{d.name} = {w.type(inner)}")
        elif isinstance(d, c_ast.Decl):
            if isinstance(d.type, c_ast.FuncDecl):
                if d.name.startswith("moec_") and "static" not in d.storage:
                    functions.append(d)
            elif isinstance(d.type, c_ast.Enum):
                w.enum(d.type)
            elif isinstance(d.type, c_ast.Struct):
                w.fields[d.type.name] = d.type.decls
                w.struct(d.type.name, d.type)
            elif d.name.endswith("__init"):
                w.initial(d.name[:-len("__init")], d.init)
            elif d.name.endswith("__value"):
                w.lines.append(f"{d.name[:-7]} = {w.value(d.init)}")
    out = ['# SPDX-License-Identifier: Apache-2.0',
           '"""Written by python/make_abi.py from the public headers: not by '
           'hand."""', "import ctypes as c", "import typing as t", "",
           "from ._struct import Struct as _Struct", ""]
    out += w.lines
    out += ["", "FUNCTIONS: t.Dict[str, t.Tuple[t.Any, t.List[t.Any]]] = {"]
    for d in functions:
        f = d.type
        args = [] if not f.args else [
            "..." if isinstance(p, c_ast.EllipsisParam) else
            w.type(p.type, True) for p in f.args.params]
        if "..." in args:
            continue
        args = [] if args == ["None"] else args
        out.append(f'    "{d.name}": ({w.type(f.type)}, [{", ".join(args)}]),')
    out += ["}", ""]
    return "\n".join(out)


if __name__ == "__main__":
    with open(sys.argv[2], "w") as out:
        out.write(generate(sys.argv[1]))
