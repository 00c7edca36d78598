package sampler

// The Go types of the shared structs and enums are made here and only here; the unwinders pass -no-global-types.
// clang 19 is pinned: CI regenerates and fails on a difference. llvm-strip takes DWARF, not BTF.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -type outcome -type event -type record_type -type frame_kind -type sample_context -type frame -type record -type bpf_stack_build_id bpf sampler.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../include
