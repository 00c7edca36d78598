package cfi

// vector decodes an instruction with a VEX or EVEX prefix, as all of AVX and some of general use have (Intel's manual, volume 2,
// sections 2.3 and 2.7): its length, 0 if it is none or cut short, and whether it may write rbp. None of them calls, jumps or pushes, and
// compilers do not compute stack pointers with them.
func vector(code []byte, n *instruction) int {
	if len(code) < 3 {
		return 0
	}
	// The map of the opcode, and the register that the prefix names.
	var at int
	var space, third byte
	switch code[0] {
	case 0xc5:
		at, space, third = 2, 1, ^code[1]>>3&15
	case 0xc4:
		at, space, third = 3, code[1]&31, ^code[2]>>3&15
	case 0x62:
		if len(code) < 4 {
			return 0
		}
		at, space, third = 4, code[1]&7, ^code[2]>>3&15
	default:
		return 0
	}
	if space == 0 || space > 6 || space == 4 || at >= len(code) {
		return 0
	}
	opcode := code[at]
	at++
	if space == 1 && opcode == 0x77 { // vzeroupper, vzeroall
		return at
	}
	if at >= len(code) {
		return 0
	}
	modrm := code[at]
	at++
	mod, reg, rm := modrm>>6, modrm>>3&7, modrm&7
	base := rm
	if mod != 3 && rm == 4 { // an index byte
		if at >= len(code) {
			return 0
		}
		base = code[at] & 7
		at++
	}
	switch {
	case mod == 1:
		at++
	case mod == 2, mod == 0 && base == 5: // a displacement without a base, or from the instruction pointer
		at += 4
	}
	if space == 3 || space == 1 && (opcode >= 0x70 && opcode <= 0x73 || opcode == 0xc2 || opcode >= 0xc4 && opcode <= 0xc6) {
		at++ // an immediate
	}
	if at > len(code) {
		return 0
	}
	// Those that write a general register: moves of masks, elements and numbers, and what the extensions for bits have.
	var general bool
	switch space {
	case 1:
		switch opcode {
		case 0x2c, 0x2d, 0x50, 0x78, 0x79, 0x7e, 0x93, 0xc5, 0xd7:
			general = true
		}
	case 2:
		general = opcode >= 0xf2 && opcode <= 0xf7
	case 3:
		general = opcode >= 0x14 && opcode <= 0x17 || opcode == 0xf0
	}
	const bp = 5
	if general && (reg == bp || mod == 3 && rm == bp || third == bp) {
		n.effect = effectLostFP
	}
	return at
}
