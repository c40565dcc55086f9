"""What the PTX parser makes of texts: names resolved to indices, scopes gone, and errors that say where."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from emulator._core import parse_summary

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def parse(text: str) -> dict[str, Any]:
    """The module of a text that lacks its three first lines."""
    return parse_summary(HEAD + text, "t.ptx")


def body(text: str, head: str = ".visible .entry k(.param .u64 a, .param .u32 n)") -> dict[str, Any]:
    """The one function that has this body."""
    return parse(f"{head}\n{{\n{text}\n}}\n")["functions"][0]


def operands(text: str, declarations: str = ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<4>;") -> list[str]:
    """The operands of one instruction."""
    return body(f"{declarations}\n{text}")["statements"][-1]["operands"]


def error(text: str) -> str:
    """The message that a body is refused with."""
    with pytest.raises(SyntaxError) as caught:
        body(text)
    return str(caught.value)


def test_header_and_functions() -> None:
    module = parse_summary(
        ".version 8.8\n.target sm_80, debug\n.address_size 64\n"
        ".visible .func (.param .b32 r) f(.param .b32 x);\n"
        ".extern .func  (.param .b32 r) vprintf (.param .b64 a, .param .b64 b)\n;\n"
        ".visible .entry k() { ret; }\n"
        ".func (.param .b32 r) f(.param .b32 x) { st.param.b32 [r+0], 5; ret; }",
        "t.ptx",
    )
    assert (module["version"], module["target"]) == ("8.8", "sm_80")
    assert [(f["name"], f["is_entry"], f["is_declaration"]) for f in module["functions"]] == [
        ("f", False, False),
        ("vprintf", False, True),
        ("k", True, False),
    ]
    assert module["functions"][0]["statements"][0]["operands"] == ["[results[0]]", "5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.ptx:1: want .version first, got the end of the text"),
        (".version 10.0\n.target sm_90", "t.ptx:1: want a version of at most 9.9, such as 9.0, got '10.0'"),
        (".version 9.0\n.entry", "t.ptx:2: want .target after .version, got '.entry'"),
        (HEAD + ".alias f, g;", "t.ptx:4: .alias at module scope is not supported"),
        (HEAD + ".global .texref t;", "t.ptx:4: .texref is not supported"),
        (HEAD + ".entry k()\n{ ret;", "t.ptx:5: want an instruction or '}', got the end of the text"),
        (HEAD + ".section .debug_str { .b8 1", "t.ptx:4: want '}' that closes .section, got the end of the text"),
    ],
)
def test_module_errors(text: str, message: str) -> None:
    with pytest.raises(SyntaxError) as caught:
        parse_summary(text, "t.ptx")
    assert str(caught.value) == message


def test_parameters_are_laid_out_with_natural_alignment() -> None:
    function = body(
        "ret;",
        ".entry k(.param .u8 a, .param .u64 .ptr .global .align 1 b, .param .align 4 .b8 c[10], .param .f64 d,"
        " .param .align 64 .b8 e[128])",
    )
    got = [(p["name"], p["type"], p["bytes"], p["offset"], p["align"]) for p in function["parameters"]]
    assert got == [
        ("a", "u8", 1, 0, 1),
        ("b", "u64", 8, 8, 8),
        ("c", "b8", 10, 16, 4),
        ("d", "f64", 8, 32, 8),
        ("e", "b8", 128, 64, 64),
    ]


def test_performance_directives() -> None:
    function = body(
        "ret;",
        ".entry k()\n.maxntid 256\n.minnctapersm 2\n.maxnreg 64\n.reqntid 16, 8\n.explicitcluster\n"
        '.reqnctapercluster 2, 1, 1\n.maxclusterrank 8\n.blocksareclusters\n.pragma "nounroll";\n',
    )
    assert function["max_threads"] == [256, 1, 1]
    assert function["required_threads"] == [16, 8, 1]
    assert function["required_cluster"] == [2, 1, 1]
    assert function["explicit_cluster"]
    assert function["blocks_are_clusters"]
    assert (function["min_blocks"], function["max_registers"], function["max_cluster_rank"]) == (2, 64, 8)
    plain = body("ret;")
    assert plain["max_threads"] == [0, 0, 0]
    assert not plain["explicit_cluster"]


def test_registers_of_a_range_exist_once_they_are_named() -> None:
    function = body(".reg .b32 %r<100>, x; .reg .pred %p<2>; mov.b32 %r7, %r99; mov.b32 x, %r7; @%p1 ret;")
    assert function["registers"] == [("x", "b32"), ("%r7", "b32"), ("%r99", "b32"), ("%p1", "pred")]
    assert function["statements"][2]["guard"] == "r3"


def test_ranges_end_before_their_count() -> None:
    assert "unknown register %r9" in error(".reg .b32 %r<9>; mov.b32 %r9, 0;")
    assert "unknown register %r01" in error(".reg .b32 %r<9>; mov.b32 %r01, 0;")


def test_scopes_hide_registers_and_repeat_labels() -> None:
    function = body(
        """
        .reg .b32 r; .reg .pred p;
        { .reg .pred p; L1: add.s32 r, r, 1; setp.gt.s32 p, r, 5; @!p bra L1; bra DONE; DONE: }
        {
        .reg .b32 r;
        L1:
          mov.b32 r, 3;
          bra.uni L1;
          @p bra END;
        }
        END:
        """
    )
    assert [s["operands"] for s in function["statements"]] == [
        ["r0", "r0", "1"],
        ["r2", "r0", "5"],
        ["@0"],
        ["@4"],
        ["r3", "3"],
        ["@4"],
        ["@7"],
    ]
    assert [s["guard"] for s in function["statements"]] == [None, None, "!r2", None, None, None, "r1"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("mov.b32 %r1, 0x1F;", "31"),
        ("mov.b32 %r1, 017;", "15"),
        ("mov.b32 %r1, 0b101;", "5"),
        ("mov.b32 %r1, 42U;", "42"),
        ("mov.b32 %r1, -3;", "-3"),
        ("mov.b32 %r1, - 3;", "-3"),
        ("mov.b32 %r1, !0;", "1"),
        ("mov.b32 %r1, ~7;", "-8"),
        ("mov.b32 %r1, 4+2*3-1;", "9"),
        ("mov.b32 %r1, (1<<4)+WARP_SZ;", "48"),
        ("mov.b64 %rd1, 0xFFFFFFFFFFFFFFFF;", "-1"),
        ("mov.f32 %r1, 0f3F800000;", "0f3F800000"),
        ("mov.f64 %rd1, 0d3FF0000000000000;", "0d3FF0000000000000"),
        ("mov.f64 %rd1, 1.5;", "0d3FF8000000000000"),
        ("mov.f64 %rd1, -2.5e-1;", "0dBFD0000000000000"),
        ("mov.f32 %r1, -0f3F800000;", "0fBF800000"),
    ],
)
def test_immediates(text: str, want: str) -> None:
    assert operands(text)[1] == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ld.b32 %r1, [%rd1];", "[r1]"),
        ("ld.b32 %r1, [%rd1+16];", "[r1+16]"),
        ("ld.b32 %r1, [ %rd1 + -4 ];", "[r1-4]"),
        ("ld.b32 %r1, [%rd1-0x10];", "[r1-16]"),
        ("ld.param.b32 %r1, [n];", "[parameters[1]]"),
        ("ld.param.b32 %r1, [a+4];", "[parameters[0]+4]"),
        ("ld.shared.b32 %r1, [64];", "[64]"),
        ("ld.shared.b32 %r1, [64+4];", "[68]"),
        ("mov.b64 %rd1, a;", "parameters[0]"),
        ("mov.b64 %rd1, a+8;", "parameters[0]+8"),
        ("mov.b32 %r1, %tid.x;", "%tid.x"),
        ("mov.b32 %r1, %envreg3;", "%envreg3"),
        ("mov.b64 %rd1, {%r1, _};", "{r1, _}"),
    ],
)
def test_addresses_and_names(text: str, want: str) -> None:
    assert operands(text)[1] == want


def test_addresses_with_coordinates() -> None:
    got = body(
        ".reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .b16 %h<3>;"
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%r1], [%rd1, {%r2, %r3, %r4}], [%r5+8], {%h1}, %rd2;"
    )["statements"][0]
    assert got["modifiers"] == [
        *("async", "bulk", "tensor", "3d", "shared::cluster", "global", "im2col", "mbarrier::complete_tx::bytes"),
        "L2::cache_hint",
    ]
    assert got["operands"] == ["[r0]", "[r1, {r2, r3, r4}]", "[r5+8]", "{r6}", "r7"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("setp.lt.s32 %p1|%p2, %r1, %r2;", ["r0|r1", "r2", "r3"]),
        ("elect.sync _|%p1, -1;", ["_|r0", "-1"]),
        ("shfl.sync.idx.b32 %r1 | _, %r1, 0, 31, -1;", ["r0|_", "r0", "0", "31", "-1"]),
        ("and.pred %p1, %p2, !%p3;", ["r0", "r1", "!r2"]),
        ("ld.v4.b32 {%r1, _, %r2, _}, [%rd1];", ["{r0, _, r1, _}", "[r2]"]),
        ("wgmma.wait_group.sync.aligned 0;", ["0"]),
        ("bar.sync 0, %r1;", ["0", "r0"]),
        ("ret;", []),
    ],
)
def test_operand_forms(text: str, want: list[str]) -> None:
    assert operands(text) == want


def test_calls_have_three_operands() -> None:
    function = parse(
        ".func f; .func (.param .b32 r) g(.param .b32 x, .param .b32 y); .func later;\n"
        ".entry k() { .reg .b32 %r<4>; .reg .b64 %rd<4>;\n"
        "call f;\n"
        "{ .param .b32 p0; .param .align 4 .b8 p1[12]; .param .b32 ret0; st.param.b32 [p0+0], %r1;\n"
        "call.uni (ret0), g, (p0, p1); ld.param.b32 %r2, [ret0+0]; }\n"
        "{ .param .b32 p0; .param .b32 ret0;\n"
        "proto : .callprototype (.param .b32 _) _ (.param .b32 _);\n"
        "call (ret0), %rd1, (p0), proto; }\n"
        "call later, (); }\n.func later { ret; }"
    )["functions"][3]
    calls = [s["operands"] for s in function["statements"] if s["opcode"] == "call"]
    assert calls == [
        ["{}", "functions[0]", "{}"],
        ["{variables[2]}", "functions[1]", "{variables[0], variables[1]}"],
        ["{variables[4]}", "r2", "{variables[3]}", "prototype"],
        ["{}", "functions[2]", "{}"],
    ]
    got = [(v["name"], v["space"], v["bytes"]) for v in function["variables"]]
    assert got == [
        ("p0", "param", 4),
        ("p1", "param", 12),
        ("ret0", "param", 4),
        ("p0.1", "param", 4),
        ("ret0.1", "param", 4),
    ]


def test_branch_tables() -> None:
    function = body(
        ".reg .b32 %r<2>; A: ret; table: .branchtargets A, B,\n C; brx.idx.uni %r1, table; B: ret; C:", ".entry k()"
    )
    assert function["branch_tables"] == [[0, 2, 3]]
    assert function["statements"][1]["operands"] == ["r0", "branch_tables[0]"]


def test_body_variables() -> None:
    function = body(
        ".local .align 16 .b8 __local_depot0[160]; .shared .align 4 .f32 tile[2][8]; .reg .b64 %rd<3>;"
        "mov.u64 %rd1, __local_depot0; ld.shared.b64 %rd2, [tile+8];"
    )
    assert [(v["name"], v["space"], v["bytes"], v["align"]) for v in function["variables"]] == [
        ("__local_depot0", "local", 160, 16),
        ("tile", "shared", 64, 4),
    ]
    assert function["statements"][1]["operands"] == ["r1", "[variables[1]+8]"]


def test_module_variables() -> None:
    module = parse(
        ".extern .shared .align 16 .b8 dynamic[];\n.shared .b32 fixed[4];\n.extern .global .b32 later;\n"
        ".visible .global .attribute(.managed) .align 4 .b8 m[16], n;\n.global .b32 later = 7;\n"
        ".entry k() { .reg .b64 %rd1; mov.b64 %rd1, later; }"
    )
    got = [(v["name"], v["space"], v["bytes"], v["align"], v["is_extern"]) for v in module["variables"]]
    assert got == [
        ("dynamic", "shared", 0, 16, True),
        ("fixed", "shared", 16, 4, False),
        ("later", "global", 4, 4, False),
        ("m", "global", 16, 4, False),
        ("n", "global", 1, 4, False),
    ]
    assert module["functions"][0]["statements"][0]["operands"] == ["r0", "module_variables[2]"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (".global .u32 x = -7;", struct.pack("<i", -7)),
        (".const .b8 x[5] = {1, 0xFF, -1};", bytes([1, 255, 255, 0, 0])),
        (".global .b16 x[] = {1, 2, 3};", struct.pack("<3H", 1, 2, 3)),
        (".global .s32 x[2][3] = {{1}, {2, 3}};", struct.pack("<6i", 1, 0, 0, 2, 3, 0)),
        (".global .s32 x[][2] = {{1, 2}, {3, 4}, {5}};", struct.pack("<6i", 1, 2, 3, 4, 5, 0)),
        (".global .f32 x[3] = {1.5, 0f40000000, -1};", struct.pack("<3f", 1.5, 2.0, -1.0)),
        (".global .f64 x[2] = {-2.5, 0f3F800000};", struct.pack("<2d", -2.5, 1.0)),
        (".global .b32 x = 0f7FC00001;", struct.pack("<I", 0x7FC00001)),
        (".global .v4 .f32 x = {1.0, 2.0, 3.0, 4.0};", struct.pack("<4f", 1, 2, 3, 4)),
        (".global .u32 x;", b""),
    ],
)
def test_initial_values(text: str, want: bytes) -> None:
    assert parse(text)["variables"][0]["initial"] == want


def test_initial_addresses() -> None:
    variable = parse(".global .b8 s[4];\n.global .u64 x[5] = {1, s, s+4, generic(s), generic(s)+12};")["variables"][1]
    assert variable["addresses"] == [(8, "s", 0, False), (16, "s", 4, False), (24, "s", 0, True), (32, "s", 12, True)]
    assert variable["initial"] == struct.pack("<5Q", 1, 0, 0, 0, 0)


def test_source_lines_and_inlining() -> None:
    module = parse(
        ".entry k() {\n.loc 1 10 3\nret;\n"
        ".loc 2 350 5, function_name $L__info_string0, inlined_at 1 27 30\nret;\n"
        ".loc 3 8 1, function_name $L__info_string1+4, inlined_at 2 350 5\nret;\n.loc 1 28 1\nret; }\n"
        '.file 1 "/a b/k.cu"\n.file 3 "/c.h", 1700000000, 99\n'
        ".section .debug_str\n{\n$L__info_string0:\n.b8 95,90 // }\n\n}\n.section .debug_macinfo { }\n"
    )
    assert module["files"] == ["", "/a b/k.cu", "", "/c.h"]
    got = [(s["where"], s["caller"]) for s in module["functions"][0]["statements"]]
    assert got == [((1, 10, 3), (0, 0)), ((2, 350, 5), (1, 27)), ((3, 8, 1), (1, 27)), ((1, 28, 1), (0, 0))]


def test_statement_text_is_one_line_without_comments() -> None:
    got = body(".reg .b32 %r<3>; .reg .pred %p1;\n@%p1 add.s32 /* sum */\n\t%r1, // first\n %r1, %r2;")["statements"][0]
    assert got["text"] == "@%p1 add.s32 %r1, %r1, %r2;"
    assert (got["opcode"], got["modifiers"], got["ptx_line"]) == ("add", ["s32"], 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mov.u32 %r1, 0", "unknown register %r1"),
        (".reg .b32 x; mov.u32 x, 0 }", "want ';' after mov.u32, got '}'"),
        (".reg .b32 x; mov.u32 x, y;", "unknown name y in mov.u32 x, y;"),
        ("bra NOWHERE;", "unknown label NOWHERE"),
        ("L: bra {L};", "want a label after bra, got '{'"),
        ("{ L: } bra L;", "unknown label L"),
        ("bra n;", "unknown label n"),
        (".reg .b32 x; .reg .f32 x;", "x is declared twice in one scope"),
        ("L: L: ret;", "L is declared twice in one scope"),
        (".reg .b32 x; @x ret;", "want a predicate after '@', got x"),
        (".reg .b32 x; vadd.s32.s32.s32 x, x.b0, x;", "parts of a register (x.b0) are not supported"),
        (".reg .b32 x; mov.b32 x, 0f3F80;", "a float 0f without its 8 digits"),
        (".reg .b32 x; mov.b32 x, 0x1FFFFFFFFFFFFFFFF;", "a number of more than 64 bits"),
        (".reg .b32 x; mov.b32 x, 12ab;", "a number that runs into a word"),
        (".reg .b32 x; ld.b32 x, [x;", "want ']' after an address, got ';'"),
        (".reg .v4 .f32 x;", "vector registers are not supported"),
        (".reg .b31 x;", "want a type, got '.b31'"),
        (".shared .b32 x[4] = {1};", "want no initialiser outside .global and .const"),
        ("%r1 = 5;", "want an instruction"),
        ("?", "want an instruction or '}', got '?'"),
    ],
)
def test_body_errors(text: str, message: str) -> None:
    assert message in error(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".global .u64 x[1] = {0xFF(s)};", "a byte of an address (0xFF(…)) is not supported"),
        (".global .u32 x = s;", "an address does not fit an element of .u32"),
        (".global .u32 x[2] = {1, 2, 3};", "want '}' after the last element of x"),
        (".global .u32 x[];", "variable x has no size and no initialiser"),
        (".global .u32 x; .global .u32 x;", "x is declared twice"),
        (".global .b8 x[0x7FFFFFFFFFFFFFFF];", "an array's size is out of range"),
        (".global .b8 x[1000000000000] = {1};", "want an initialised array of less than 256 MiB"),
    ],
)
def test_variable_errors(text: str, message: str) -> None:
    with pytest.raises(SyntaxError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_nesting_without_end_is_an_error() -> None:
    deep = 100_000
    assert "nest" in error(".reg .b32 x; mov.b32 x, " + "{" * deep)
    assert "nest" in error(".reg .b32 x; mov.b32 x, " + "-" * deep + "1;")
    assert "nest" in error(".reg .b32 x; mov.b32 x, " + "(" * deep)
    assert "got the end" in error("{" * deep)


def test_every_cut_of_a_text_is_refused_or_parsed() -> None:
    text = HEAD + (
        ".global .u64 g[2] = {generic(g)+4, 0xF};\n.func (.param .b32 r) f(.param .b32 x) { ret; }\n"
        '.visible .entry k(.param .u64 .ptr .align 4 a) .maxntid 128\n{ .reg .pred %p<2>; .pragma "nounroll";\n'
        ".loc 1 2 3, function_name L, inlined_at 1 2 3\nL: @!%p1 bra L; t: .branchtargets L;\n"
        "{ .param .b32 q; call (q), f, (q); } ld.v2.f32 {_, %f1}, [a+4]; }\n.section .x { }\n"
    )
    refusals = []
    for cut in range(len(text)):
        try:
            parse_summary(text[:cut], "t.ptx")
        except SyntaxError as refused:
            refusals.append(str(refused))
    assert len(refusals) > len(text) // 2
    assert all(message.startswith("t.ptx:") for message in refusals)
