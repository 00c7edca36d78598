package cfi

import "encoding/binary"

// cursor reads numbers from bytes of a file. Once something does not fit, failed is set and all that follows is 0.
type cursor struct {
	b      []byte
	at     Address // of b[0] when the file is loaded; it moves along
	failed bool
}

// take returns the next n bytes.
func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.failed, c.b = true, nil
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	c.at += Address(n)
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// uleb reads an unsigned LEB128 number; more than 64 bits fail.
func (c *cursor) uleb() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.failed, c.b = true, nil
		return 0
	}
	c.take(uint64(n))
	return v
}

// sleb reads a signed LEB128 number; more than 64 bits fail.
func (c *cursor) sleb() int64 {
	var v int64
	for shift := 0; shift < 64; shift += 7 {
		b := c.u8()
		if c.failed {
			return 0
		}
		v |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			if b&0x40 != 0 && shift+7 < 64 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	c.failed, c.b = true, nil
	return 0
}

// cstring reads a zero-terminated string of at most 16 bytes: augmentations are shorter.
func (c *cursor) cstring() string {
	for i := 0; i < len(c.b) && i < 16; i++ {
		if c.b[i] == 0 {
			return string(c.take(uint64(i + 1))[:i])
		}
	}
	c.failed, c.b = true, nil
	return ""
}

// Pointer encodings (LSB core specification, section 10.5.1): the form in the low four bits, the base in the next three.
const (
	encAbsolute = 0x00
	encUleb     = 0x01
	encUdata2   = 0x02
	encUdata4   = 0x03
	encUdata8   = 0x04
	encSleb     = 0x09
	encSdata2   = 0x0a
	encSdata4   = 0x0b
	encSdata8   = 0x0c

	encPCRel   = 0x10
	encDataRel = 0x30

	encOmit = 0xff
)

// pointer reads a pointer of that encoding; data is the base of data-relative ones. Bases that no linker writes for code
// addresses (text, function, indirect) fail.
func (c *cursor) pointer(enc uint8, data Address) Address {
	at := c.at
	v := c.number(enc)
	switch enc & 0xf0 {
	case 0:
	case encPCRel:
		v += uint64(at)
	case encDataRel:
		v += uint64(data)
	default:
		c.failed, c.b = true, nil
		return 0
	}
	return Address(v)
}

// number reads the form of an encoding and ignores its base.
func (c *cursor) number(enc uint8) uint64 {
	switch enc & 0x0f {
	case encAbsolute, encUdata8, encSdata8:
		return c.u64()
	case encUleb:
		return c.uleb()
	case encUdata2:
		return uint64(c.u16())
	case encUdata4:
		return uint64(c.u32())
	case encSleb:
		return uint64(c.sleb())
	case encSdata2:
		return uint64(int64(int16(c.u16())))
	case encSdata4:
		return uint64(int64(int32(c.u32())))
	}
	c.failed, c.b = true, nil
	return 0
}
