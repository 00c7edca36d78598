package cfi

import (
	"math/rand/v2"
	"testing"
)

func TestRulesSurvivePacking(t *testing.T) {
	for _, r := range []Rule{
		{},
		{Kind: Stop},
		{Kind: Signal},
		{Kind: FramePointer},
		{Kind: Normal, Base: X86SP, CFA: 16, FP: AtCFA, FPAt: -16, RA: AtCFA, RAAt: -8},
		{Kind: Normal, Base: X86SP, CFA: maxCFA, FP: AtCFA, FPAt: minSlotAt, RA: AtCFA, RAAt: maxSlotAt},
		{Kind: Normal, Base: 15, CFA: minCFA, FP: Lost, RA: Unchanged, RAAt: 5},
		{Kind: Normal, Base: ARM64SP, RA: Unchanged, RAAt: int32(ARM64LR), Signed: true},
		{Kind: Normal, Base: ARM64FP, CFA: 512, FP: AtCFA, FPAt: -512, RA: AtCFA, RAAt: -504, Signed: true},
		{Kind: Deref, Base: X86FP, CFA: -8, Plus: 16, FP: AtFP, RA: AtCFA, RAAt: -8},
		{Kind: Deref, Base: X86FP, CFA: -8, Plus: -16, FP: AtFP, FPAt: 8, RA: AtCFA, RAAt: -8},
		{Kind: Deref, Base: X86SP, CFA: 544, Plus: 8, FP: AtCFA, FPAt: -16, RA: AtCFA, RAAt: -8},
		{Kind: Indexed, Base: 9, CFA: 8, Plus: 8, FP: AtCFA, FPAt: -24, RA: AtCFA, RAAt: -8},
		{Kind: Normal, Base: X86BX, CFA: 24, FP: AtCFA, FPAt: -16, RA: AtCFA, RAAt: -8, BXAt: -24},
		{Kind: PLT, Base: X86SP, CFA: 8, Plus: 11, RA: AtCFA, RAAt: -8},
	} {
		if !r.fits() {
			t.Errorf("%+v does not fit", r)
		}
		if got := Unpack(r.Pack()); got != r {
			t.Errorf("%+v comes back as %+v", r, got)
		}
	}
	for _, r := range []Rule{
		{Kind: Normal, Base: X86SP, CFA: maxCFA + 8},
		{Kind: Normal, Base: X86SP, CFA: 4},
		{Kind: Normal, Base: 32},
		{Kind: Normal, FP: AtCFA, FPAt: minSlotAt - 8},
		{Kind: Normal, FP: AtCFA, FPAt: -4},
		{Kind: Normal, RA: AtCFA, RAAt: maxSlotAt + 8},
		{Kind: Normal, RA: Unchanged, RAAt: 32},
		{Kind: Deref, Base: X86FP, RA: AtCFA, RAAt: -16},
		{Kind: Normal, RA: Lost},
		{Kind: Normal, RA: AtCFA, RAAt: -16, BXAt: -24},
		{Kind: Deref, RA: AtCFA, RAAt: -8, BXAt: -24},
		{Kind: PLT, Base: X86SP, CFA: 8, Plus: 16, RA: AtCFA, RAAt: -8},
	} {
		if r.fits() {
			t.Errorf("%+v is said to fit; it comes back as %+v", r, Unpack(r.Pack()))
		}
	}
}

func TestDifferentRulesPackDifferently(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[uint64]Rule{}
	for range 200_000 {
		r := Unpack(rnd.Uint64())
		if r.Kind >= kinds || !r.fits() {
			continue
		}
		p := r.Pack()
		if was, ok := seen[p]; ok && was != r {
			t.Fatalf("%+v and %+v are both 0x%x", was, r, p)
		}
		if Unpack(p) != r {
			t.Fatalf("%+v comes back as %+v", r, Unpack(p))
		}
		seen[p] = r
	}
	if len(seen) < 10_000 {
		t.Fatalf("only %d rules tried", len(seen))
	}
}
