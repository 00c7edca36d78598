package symbol

import (
	"debug/elf"
	"encoding/binary"
	"math"
	"strings"
)

// maxPLT is how many bytes of PLT sections are decoded; the largest libraries have about 1 MB of them.
const maxPLT = 4 << 20

// maxRelocations is how many bytes of relocations are read to name the PLT.
const maxRelocations = 32 << 20

// readPLT adds a function for each stub of the procedure linkage table. A stub jumps through a slot of the GOT; the
// relocation of that slot says whose it is. Decoding the jump instead of counting entries gets .plt, .plt.sec, .plt.got and
// every linker's order right.
func (r *symbolReader) readPLT() error {
	m := r.m
	var decode func(code []byte, at Address, f func(stub, slot Address, size uint32))
	switch {
	case m.machine == elf.EM_X86_64 && m.class64:
		decode = pltX86
	case m.machine == elf.EM_AARCH64 && m.class64:
		decode = pltARM64
	}
	if decode == nil || len(r.dyn) == 0 {
		return nil
	}
	slots, err := m.slotSymbols()
	if err != nil || len(slots) == 0 {
		return err
	}
	left := uint64(maxPLT)
	for i := range m.sections {
		s := &m.sections[i]
		if !s.exec() || !strings.HasPrefix(s.name, ".plt") || !m.inFile(s) || s.size > left ||
			s.addr < r.base || s.addr-r.base+Address(s.size) >= math.MaxUint32 {
			continue
		}
		left -= s.size
		code, err := m.src.bytes(s.off, s.size, maxPLT, "PLT")
		if err != nil {
			return err
		}
		decode(code, s.addr, func(stub, slot Address, size uint32) {
			sym, ok := slots[slot]
			if !ok || uint64(sym) >= uint64(len(r.dyn)) || r.dyn[sym] == 0 {
				return
			}
			start := uint32(stub - r.base)
			r.add(function{start: start, end: start + size, name: r.dyn[sym], tab: r.dynTab, class: classPLT | classTyped | classSized})
		})
	}
	return nil
}

// slotSymbols maps GOT slots to symbol numbers, from the relocations that the dynamic linker applies to them.
func (m *image) slotSymbols() (map[Address]uint32, error) {
	slots := make(map[Address]uint32)
	left := uint64(maxRelocations)
	le := binary.LittleEndian
	for i := range m.sections {
		s := &m.sections[i]
		if s.typ != elf.SHT_RELA || s.flags&elf.SHF_ALLOC == 0 || !m.inFile(s) || s.size > left {
			continue
		}
		// .rela.dyn is large and names stubs of .plt.got only.
		if s.name != ".rela.plt" && (s.name != ".rela.dyn" || m.section(".plt.got") == nil) {
			continue
		}
		left -= s.size
		err := m.src.records(s.off, s.size, 24, "relocations", func(b []byte) {
			info := le.Uint64(b[8:])
			jump := false
			switch m.machine {
			case elf.EM_X86_64:
				t := elf.R_X86_64(info & 0xffffffff)
				jump = t == elf.R_X86_64_JMP_SLOT || t == elf.R_X86_64_GLOB_DAT
			case elf.EM_AARCH64:
				t := elf.R_AARCH64(info & 0xffffffff)
				jump = t == elf.R_AARCH64_JUMP_SLOT || t == elf.R_AARCH64_GLOB_DAT
			}
			if jump && len(slots) < maxPLT/8 {
				slots[Address(le.Uint64(b))] = uint32(info >> 32)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return slots, nil
}

// pltX86 finds stubs of the form [endbr64] [bnd] jmp *slot(%rip). An entry is 16 bytes, in .plt.got without CET 8.
func pltX86(code []byte, at Address, f func(stub, slot Address, size uint32)) {
	le := binary.LittleEndian
	for i := 0; i+6 <= len(code); i += 8 {
		p := i
		if i+4 <= len(code) && le.Uint32(code[i:]) == 0xfa1e0ff3 { // endbr64
			p += 4
		}
		if p < len(code) && code[p] == 0xf2 { // bnd
			p++
		}
		if p+6 > len(code) || code[p] != 0xff || code[p+1] != 0x25 {
			continue
		}
		slot := at + Address(p+6) + Address(int64(int32(le.Uint32(code[p+2:]))))
		size := uint32(16)
		if (at+Address(i))%16 != 0 || i+14 <= len(code) && code[i+8] == 0xff && code[i+9] == 0x25 {
			size = 8
		}
		f(at+Address(i), slot, size)
	}
}

// pltARM64 finds stubs of the form [bti c] adrp x16, page; ldr x17, [x16, #low].
func pltARM64(code []byte, at Address, f func(stub, slot Address, size uint32)) {
	le := binary.LittleEndian
	for i := 0; i+8 <= len(code); i += 4 {
		adrp, ldr := le.Uint32(code[i:]), le.Uint32(code[i+4:])
		if adrp&0x9f00001f != 0x90000010 || ldr&0xffc003ff != 0xf9400211 {
			continue
		}
		imm := int64(adrp>>29&3) | int64(adrp>>5&0x7ffff)<<2
		imm = imm << 43 >> 43 // 21 bits, signed
		slot := (at+Address(i))&^0xfff + Address(imm<<12) + Address(ldr>>10&0xfff)*8
		stub, size := i, uint32(16)
		if i >= 4 && le.Uint32(code[i-4:]) == 0xd503245f { // bti c
			stub, size = i-4, 20
		}
		f(at+Address(stub), slot, size)
	}
}
