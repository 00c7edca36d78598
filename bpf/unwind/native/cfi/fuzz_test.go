package cfi

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// exercise asks for all rows of a file's first pages of code, and holds them against what Rows promises.
func exercise(t testing.TB, b []byte) {
	t.Helper()
	r := bytes.NewReader(b)
	f, err := Open(r, int64(len(b)))
	if err != nil {
		return
	}
	if most := int64(1<<20 + 64*len(b)); f.Bytes() > most {
		t.Fatalf("%d bytes held for a file of %d", f.Bytes(), len(b))
	}
	var rows []Row
	for _, code := range f.Code()[:min(len(f.Code()), 4)] {
		from, to := code.Address, min(code.End(), code.Address+4*PageBytes)
		var stats Stats
		if rows, err = f.Rows(r, rows[:0], from, to, &stats); err != nil {
			continue
		}
		for i, row := range rows {
			if i == 0 && row.Address != from || row.Address >= to || i > 0 && (row.Address <= rows[i-1].Address || row.Rule == rows[i-1].Rule) {
				t.Fatalf("row %d of [%#x, %#x) is %+v", i, from, to, row)
			}
			if !row.Rule.fits() || Unpack(row.Rule.Pack()) != row.Rule {
				t.Fatalf("%+v does not fit", row.Rule)
			}
		}
		if from < to && len(rows) == 0 {
			t.Fatalf("[%#x, %#x) has no row", from, to)
		}
		if stats.Entries > 4*(PageBytes+2) {
			t.Fatalf("%d entries read for %d pages", stats.Entries, (to-from)/PageBytes)
		}
	}
}

func FuzzRows(f *testing.F) {
	for _, path := range []string{"testdata/arm64.so", "testdata/arm64-pac.so"} {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { exercise(t, b) })
}

// FuzzProgram runs call frame instructions on their own.
func FuzzProgram(f *testing.F) {
	f.Add([]byte{0x0c, 7, 8, 0x90, 1, 0x41, 0x0e, 16, 0x86, 2, 0x0a, 0x41, 0x0b, 0x2e, 4}, true)
	f.Add([]byte{0x0c, 31, 0, 0x2d, 0x41, 0x0e, 32, 0x9d, 4, 0x9e, 3, 0x16, 3, 1, 0x30}, false)
	f.Add([]byte{0x0f, 6, 0x77, 0x30, 0x06, 0x23, 8, 0x96, 0x10, 6, 2, 0x76, 0}, true)
	f.Add(bytes.Repeat([]byte{0x0a}, 100), true)
	f.Fuzz(func(t *testing.T, b []byte, x86 bool) {
		machine := elf.EM_AARCH64
		if x86 {
			machine = elf.EM_X86_64
		}
		p := program{codeAlign: 1, dataAlign: -8, steps: 1000}
		p.arch, _ = archOf(machine)
		last := Address(0x1000)
		c := cursor{b: b}
		_, at, _ := p.run(&c, state{}, 0x1000, 0x9000, func(a Address, st *state) {
			if a < last || a > 0x9000 {
				t.Fatalf("address %#x follows %#x", a, last)
			}
			last = a
			if r, why := p.rule(st, true); !r.fits() || why != ReasonCount && r != (Rule{}) {
				t.Fatalf("%+v, refused for %v", r, why)
			}
		})
		if at < last {
			t.Fatalf("ended at %#x behind %#x", at, last)
		}
	})
}

// TestFlippedBitsCostNothing damages real files, most of the time where their tables are.
func TestFlippedBitsCostNothing(t *testing.T) {
	for _, path := range []string{"/usr/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2", "testdata/arm64-pac.so"} {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Open(bytes.NewReader(good), int64(len(good)))
		if err != nil {
			t.Fatal(err)
		}
		places := [][2]uint64{{0, 1024}, {uint64(f.layout.Frames.Offset), f.layout.Frames.Size}, {uint64(f.eh.at.Offset), f.eh.at.Size}}
		rnd := rand.New(rand.NewPCG(3, uint64(len(good))))
		began := time.Now()
		const rounds = 150
		for range rounds {
			bad := bytes.Clone(good)
			for range 1 + rnd.IntN(8) {
				place := places[rnd.IntN(len(places))]
				at := place[0] + rnd.Uint64N(place[1])
				switch rnd.IntN(3) {
				case 0:
					bad[at] ^= 1 << rnd.IntN(8)
				case 1:
					bad[at] = byte(rnd.Uint32())
				case 2:
					copy(bad[at:], "\xff\xff\xff\xff\xff\xff\xff\xff"[:1+rnd.IntN(8)])
				}
			}
			if rnd.IntN(8) == 0 {
				bad = bad[:rnd.IntN(len(bad))]
			}
			exercise(t, bad)
		}
		t.Logf("%s: %v for one damaged copy", path, time.Since(began)/rounds)
	}
}

// hostile is an ELF file of one page of code, whose .eh_frame and search table are given. The table's entries are pairs of
// distances from the header at 0x1000; .eh_frame is at 0x2000.
func hostile(frames []byte, table [][2]int32) []byte {
	b := make([]byte, 0x3000)
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 3}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	put := func(at int, v any) {
		if _, err := binary.Encode(b[at:], binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	put(0, h)
	hdr := uint64(12 + 8*len(table))
	put(64, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Off: 0x1000, Vaddr: 0x1000, Filesz: uint64(0x1000 + len(frames)), Memsz: uint64(0x1000 + len(frames)), Align: 0x1000})
	put(64+56, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: 0, Vaddr: 0x100000, Filesz: 0x1000, Memsz: 0x1000, Align: 0x1000})
	put(64+112, elf.Prog64{Type: uint32(elf.PT_GNU_EH_FRAME), Flags: uint32(elf.PF_R), Off: 0x1000, Vaddr: 0x1000, Filesz: hdr, Memsz: hdr})
	b = append(b[:0x2000], frames...)
	b = b[:max(len(b), 0x2000)]
	copy(b[0x1000:], []byte{1, 0x1b, 0x03, 0x3b})
	put(0x1004, int32(0x2000-0x1004))
	put(0x1008, uint32(len(table)))
	for i, e := range table {
		put(0x100c+8*i, e)
	}
	return b
}

// framesOf assembles .eh_frame: one common entry, then one entry per program, which describes [start, start + n).
func framesOf(common []byte, starts []uint32, n uint32, programs ...[]byte) (frames []byte, table [][2]int32) {
	le := binary.LittleEndian
	record := func(id uint32, body []byte) {
		frames = le.AppendUint32(frames, uint32(4+len(body)))
		frames = le.AppendUint32(frames, id)
		frames = append(frames, body...)
	}
	// Version 1, "zR", alignments 1 and -8, return address 16, absolute four-byte pointers.
	record(0, append([]byte{1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x03}, common...))
	for i, p := range programs {
		at := len(frames)
		body := le.AppendUint32(le.AppendUint32(nil, starts[i]), n)
		record(uint32(at+4), append(append(body, 0), p...))
		table = append(table, [2]int32{int32(starts[i]) - 0x1000, int32(0x2000+at) - 0x1000})
	}
	return frames, table
}

var callFrame = []byte{0x0c, 7, 8, 0x90, 1} // CFA = rsp + 8, return address at CFA - 8

// TestHostileTables has one row per trick.
func TestHostileTables(t *testing.T) {
	nest := bytes.Repeat([]byte{0x0a}, maxRemembered+1)
	ramp := bytes.Repeat([]byte{0x41, 0x0e, 8, 0x41, 0x0e, 16}, 100_000) // a row per byte
	for _, c := range []struct {
		name   string
		why    Reason // counted
		frames func() ([]byte, [][2]int32)
		rule   Rule // at 0x100000
	}{
		{"good", ReasonCount, func() ([]byte, [][2]int32) { return framesOf(callFrame, []uint32{0x100000}, 64, nil) }, sp(8)},
		{"remember_state without end", ReasonRows, func() ([]byte, [][2]int32) { return framesOf(callFrame, []uint32{0x100000}, 64, nest) }, Rule{}},
		{"restore_state of nothing", ReasonEntry, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 64, []byte{0x0b})
		}, Rule{}},
		{"unknown instruction in the common entry", ReasonOpcode, func() ([]byte, [][2]int32) {
			return framesOf([]byte{0x3f}, []uint32{0x100000}, 64, nil)
		}, Rule{}},
		{"LEB128 without end", ReasonEntry, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 64, append([]byte{0x0e}, bytes.Repeat([]byte{0x80}, 40)...))
		}, Rule{}},
		{"expression longer than the entry", ReasonEntry, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 64, []byte{0x0f, 0xff, 0xff, 0xff, 0xff, 0x0f})
		}, Rule{}},
		{"advance beyond the function", ReasonCount, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 64, []byte{0x04, 0xff, 0xff, 0xff, 0xff, 0x0e, 16})
		}, sp(8)},
		{"offset beyond 64 bits", ReasonRange, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 64, []byte{0x13, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1})
		}, Rule{}},
		{"entry whose common entry is itself", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, nil)
			binary.LittleEndian.PutUint32(b[len(b)-13:], 4) // its id
			return b, table
		}, Rule{}},
		{"common entry before the section", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, nil)
			binary.LittleEndian.PutUint32(b[len(b)-13:], 0x7fffffff)
			return b, table
		}, Rule{}},
		{"length of 4 GB", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, nil)
			binary.LittleEndian.PutUint32(b[len(b)-17:], 0xfffffff0)
			return b, table
		}, Rule{}},
		{"length of 64 bits", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, bytes.Repeat([]byte{0xff}, 40))
			binary.LittleEndian.PutUint32(b[len(b)-57:], 0xffffffff)
			return b, table
		}, Rule{}},
		{"table with an entry of another function", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, nil)
			table[0][0] -= 8
			return b, table
		}, Rule{}},
		{"table that points nowhere", ReasonEntry, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000}, 64, nil)
			table[0][1] = -0x7fffffff
			return b, table
		}, Rule{}},
		{"functions that overlap", ReasonOverlap, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000, 0x100010}, 64, nil, []byte{0x0e, 16})
		}, sp(8)},
		{"table that is not sorted", ReasonOverlap, func() ([]byte, [][2]int32) {
			b, table := framesOf(callFrame, []uint32{0x100000, 0x100100, 0x100080}, 64, nil, nil, nil)
			return b, table
		}, sp(8)},
		{"more rows than a page may have", ReasonRows, func() ([]byte, [][2]int32) {
			return framesOf(callFrame, []uint32{0x100000}, 1<<31, ramp)
		}, sp(8)},
	} {
		t.Run(c.name, func(t *testing.T) {
			frames, table := c.frames()
			b := hostile(frames, table)
			f, err := Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			var stats Stats
			rows, err := f.Rows(bytes.NewReader(b), nil, 0x100000, 0x110000, &stats)
			if err != nil {
				t.Fatal(err)
			}
			if got := ruleAt(rows, 0x100000); got != c.rule {
				t.Errorf("got %+v, want %+v", got, c.rule)
			}
			for why, n := range stats.Refused {
				if (n > 0) != (Reason(why) == c.why) {
					t.Errorf("refused for %v: %d", Reason(why), n)
				}
			}
			exercise(t, b)
		})
	}
}

// FuzzScan follows bytes as if they were code.
func FuzzScan(f *testing.F) {
	f.Add([]byte("\x55\x48\x89\xe5\x53\x48\x83\xec\x18\xe8\x00\x00\x00\x00\x48\x83\xc4\x18\x5b\xc9\xc3"))
	f.Add([]byte("\xf3\x0f\x1e\xfa\x41\x57\x74\x02\xeb\xfc\x41\x5f\xc3\xff\xe0\xcc\xcc\x53\x5b\xc3"))
	f.Add(bytes.Repeat([]byte{0x53, 0xeb, 0xfd, 0xe8, 0xf8, 0xff, 0xff, 0xff, 0xc3}, 50))
	f.Fuzz(func(t *testing.T, code []byte) {
		base, from := Address(0x10000), Address(0x10000+len(code)/4)
		to := base + Address(len(code))
		rows, _, _ := scan(code, base, from, to, true)
		for i, r := range rows {
			if r.Address < from || r.Address >= to || i > 0 && (r.Address <= rows[i-1].Address || r.Rule == rows[i-1].Rule) || !r.Rule.fits() {
				t.Fatalf("row %d is %+v", i, r)
			}
		}
	})
}
