package cfi

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVectorInstructionsHaveTheLengthThatObjdumpSays decodes all instructions of the C library: those with the prefixes of AVX, AVX-512
// and BMI have a length, all others none.
func TestVectorInstructionsHaveTheLengthThatObjdumpSays(t *testing.T) {
	path := "/lib/x86_64-linux-gnu/libc.so.6"
	out, err := exec.Command("objdump", "-d", "-w", "--insn-width=16", path).Output()
	if err != nil {
		t.Fatalf("objdump (binutils): %v", err)
	}
	vectors := map[byte]int{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		f := strings.Split(lines.Text(), "\t")
		if len(f) < 3 {
			continue
		}
		code, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(f[1]), " ", ""))
		if err != nil || len(code) == 0 || strings.Contains(f[2], "(bad)") {
			continue
		}
		more := append(bytes.Clone(code), make([]byte, 16)...)
		got := vector(more, &instruction{})
		isVector := code[0] == 0xc4 || code[0] == 0xc5 || code[0] == 0x62
		if isVector {
			vectors[code[0]]++
		}
		if want := map[bool]int{true: len(code)}[isVector]; got != want {
			t.Errorf("%s of %s: %d bytes, want %d", strings.TrimSpace(f[2]), filepath.Base(path), got, want)
		}
		for i := range code { // cut short: no index out of range, and never more than is there
			if n := vector(code[:i], &instruction{}); n > i {
				t.Fatalf("% x: %d bytes", code[:i], n)
			}
		}
	}
	if vectors[0xc4] < 100 || vectors[0xc5] < 100 || vectors[0x62] < 100 {
		t.Errorf("%v instructions by their first byte", vectors)
	}
}

func TestVectorInstructionsThatWriteTheFramePointer(t *testing.T) {
	for code, lost := range map[string]bool{
		"c5fa7e00":       false, // vmovq (%rax), %xmm0
		"c5f97ec5":       true,  // vmovd %xmm0, %ebp
		"c5fdd7e8":       true,  // vpmovmskb %ymm0, %ebp
		"c5fdd7c0":       false, // vpmovmskb %ymm0, %eax
		"c4e2f9f7e8":     true,  // shlx %rax, %rax, %rbp
		"c5fd6f442460":   false, // vmovdqa 0x60(%rsp), %ymm0
		"62f17c48100424": false, // vmovups (%rsp), %zmm0
	} {
		b, err := hex.DecodeString(code)
		if err != nil {
			t.Fatal(err)
		}
		var n instruction
		if length := vector(b, &n); length != len(b) || (n.effect == effectLostFP) != lost {
			t.Errorf("%s: %d bytes, loses rbp: %v, want %v", code, length, n.effect == effectLostFP, lost)
		}
	}
}
