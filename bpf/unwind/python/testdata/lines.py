# Prints the line tables of lines_source.py's code objects and the line of each instruction, as this interpreter says it:
#   for v in 3.8 3.9 3.10 3.11 3.12 3.13; do pythonV lines.py > lines-$v.txt; done
# One code object per row: first line, table in hex, then "offset:line" of each change of line, 0 for none; "end" is the length.
import os
import sys
import types

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "lines_source.py")) as f:
    # Steps of more than 127 and more than 255 lines have an encoding of their own.
    source = f.read().replace("@GAP@", "\n" * 700)


def lines(code):
    if hasattr(code, "co_lines"):
        for start, end, line in code.co_lines():
            for at in range(start, end, 2):
                yield at, line or 0
        return
    import dis
    starts, line = dict(dis.findlinestarts(code)), code.co_firstlineno
    for at in range(0, len(code.co_code), 2):
        line = starts.get(at, line)
        yield at, line


def show(code):
    table = code.co_linetable if hasattr(code, "co_linetable") else code.co_lnotab
    changes, last = [], None
    for at, line in lines(code):
        if line != last:
            changes.append("%d:%d" % (at, line))
            last = line
    print(code.co_firstlineno, table.hex() or "-", ",".join(changes), len(code.co_code))
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            show(c)


show(compile(source, "lines_source.py", "exec"))
