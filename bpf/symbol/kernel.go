package symbol

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
)

const (
	maxKallsyms       = 256 << 20 // bytes of /proc/kallsyms; 122,000 lines have 6 MB
	maxKernelSymbols  = 2 << 20
	maxKernelFunction = 1 << 20 // beyond this distance from the last symbol an address belongs to nobody
)

// ErrKernelHidden says that the kernel shows its symbols but not where they are.
var ErrKernelHidden = errors.New("every address is 0: the agent needs CAP_SYSLOG (CapabilityBoundingSet= and AmbientCapabilities= in the unit) and kernel.kptr_restrict must not be 2")

// Kernel names kernel addresses: functions of the kernel image, of modules and of BPF programs, from /proc/kallsyms. It is
// safe for concurrent use.
type Kernel struct {
	path    string
	refresh sync.Mutex // one Refresh at a time
	table   atomic.Pointer[kernelTable]
}

// kernelTable is one reading of kallsyms.
type kernelTable struct {
	generation uint64
	starts     []uint64
	symbols    []kernelSymbol // symbols[i] covers starts[i] until starts[i+1]
	modules    []string       // modules[0] is the kernel itself, ""
	names      *packed
}

type kernelSymbol struct {
	name   uint32 // offset in names, hole for what is not code
	module uint16
}

// NewKernel reads procRoot/kallsyms. Where the kernel hides its addresses the error is [ErrKernelHidden].
func NewKernel(procRoot string) (*Kernel, error) {
	k := &Kernel{path: filepath.Join(procRoot, "kallsyms")}
	return k, k.Refresh()
}

// Refresh reads the symbols again: modules and BPF programs come and go. It costs some 50 ms of CPU; call it at most once per
// window, when a lookup failed. After an error the symbols stay as they were.
func (k *Kernel) Refresh() error {
	k.refresh.Lock()
	defer k.refresh.Unlock()
	f, err := os.Open(k.path)
	if err != nil {
		return fmt.Errorf("read kernel symbols: %w", err)
	}
	defer f.Close()
	t, err := parseKallsyms(f)
	if err != nil {
		return fmt.Errorf("read kernel symbols from %s: %w", k.path, err)
	}
	if old := k.table.Load(); old != nil {
		if old.equal(t) {
			return nil
		}
		t.generation = old.generation + 1
	}
	k.table.Store(t)
	return nil
}

// Generation changes whenever Refresh found other symbols than before: names that were looked up under another generation
// may be stale.
func (k *Kernel) Generation() uint64 {
	if t := k.table.Load(); t != nil {
		return t.generation
	}
	return 0
}

// Lookup names the function at addr and the module it belongs to: "" for the kernel itself, "bpf" for BPF programs.
func (k *Kernel) Lookup(addr uint64) (name, module string, ok bool) {
	t := k.table.Load()
	if t == nil {
		return "", "", false
	}
	i, found := slices.BinarySearch(t.starts, addr)
	if !found {
		i--
	}
	if i < 0 || t.symbols[i].name == hole || addr-t.starts[i] >= maxKernelFunction {
		return "", "", false
	}
	return t.names.cstring(t.symbols[i].name), t.modules[t.symbols[i].module], true
}

// Bytes is the memory that the symbols occupy.
func (k *Kernel) Bytes() int64 {
	if t := k.table.Load(); t != nil {
		return t.bytesHeld()
	}
	return 0
}

func (t *kernelTable) bytesHeld() int64 {
	n := int64(cap(t.starts))*8 + int64(cap(t.symbols))*8 + t.names.bytesHeld()
	for _, m := range t.modules {
		n += int64(len(m)) + 16
	}
	return n
}

func (t *kernelTable) equal(o *kernelTable) bool {
	return slices.Equal(t.starts, o.starts) && slices.Equal(t.symbols, o.symbols) && slices.Equal(t.modules, o.modules) &&
		bytes.Equal(t.names.data, o.names.data)
}

// kallsym is one line while the file is read.
type kallsym struct {
	addr   uint64
	name   uint32 // offset in text; hole for data, which only bounds the function before it
	length uint16
	module uint16
	rank   uint8
}

// parseKallsyms reads lines of "address type name [module]". Code is kept; the addresses of data are kept as bounds.
func parseKallsyms(r io.Reader) (*kernelTable, error) {
	limited := &io.LimitedReader{R: r, N: maxKallsyms}
	in := bufio.NewReaderSize(limited, 64<<10)
	var all []kallsym
	var text []byte
	modules := map[string]uint16{"": 0}
	t := &kernelTable{modules: []string{""}}
	lines, hidden := 0, true
	for {
		line, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return nil, &FormatError{uint64(maxKallsyms - limited.N), "line longer than 64 KiB"}
		}
		if err != nil && err != io.EOF {
			return nil, err
		}
		if len(line) > 0 {
			lines++
			addr, typ, name, module, ok := parseKallsym(line)
			if !ok {
				return nil, fmt.Errorf("line %d: %q is not address, type, name", lines, line[:min(len(line), 100)])
			}
			hidden = hidden && addr == 0
			s := kallsym{addr: addr, name: hole, rank: kallsymRank(typ, name)}
			if id, ok := modules[string(module)]; ok {
				s.module = id
			} else if len(t.modules) < math.MaxUint16 {
				s.module = uint16(len(t.modules))
				t.modules = append(t.modules, string(module))
				modules[string(module)] = s.module
			}
			if typ == 't' || typ == 'T' || typ == 'w' || typ == 'W' {
				if s.addr != 0 {
					s.name, s.length = uint32(len(text)), uint16(len(name))
					text = append(text, name...)
				}
			}
			if s.addr != 0 {
				all = append(all, s)
			}
			if len(all) > maxKernelSymbols {
				return nil, fmt.Errorf("more than %d symbols", maxKernelSymbols)
			}
		}
		if err == io.EOF {
			break
		}
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("more than %d bytes", maxKallsyms)
	}
	if lines > 0 && hidden {
		return nil, ErrKernelHidden
	}
	if len(all) == 0 {
		return nil, errors.New("no symbols: the kernel was built without CONFIG_KALLSYMS")
	}
	slices.SortStableFunc(all, func(a, b kallsym) int {
		if a.addr != b.addr {
			return cmp.Compare(a.addr, b.addr)
		}
		if a.rank != b.rank {
			return cmp.Compare(b.rank, a.rank)
		}
		return cmp.Compare(a.length, b.length)
	})
	var names packer
	for _, s := range all {
		n := len(t.starts)
		if n > 0 && t.starts[n-1] == s.addr {
			continue
		}
		k := kernelSymbol{hole, s.module}
		if s.name != hole {
			k.name = names.size()
			if _, err := names.Write(text[s.name : s.name+uint32(s.length)]); err != nil {
				return nil, err
			}
			if _, err := names.Write([]byte{0}); err != nil {
				return nil, err
			}
		} else if n > 0 && t.symbols[n-1].name == hole {
			continue // data after data bounds nothing
		}
		t.starts, t.symbols = append(t.starts, s.addr), append(t.symbols, k)
	}
	t.starts, t.symbols, t.names = slices.Clone(t.starts), slices.Clone(t.symbols), names.done()
	return t, nil
}

// parseKallsym splits a line.
func parseKallsym(line []byte) (addr uint64, typ byte, name, module []byte, ok bool) {
	line = bytes.TrimRight(line, "\n")
	a, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(rest) < 3 || rest[1] != ' ' {
		return 0, 0, nil, nil, false
	}
	addr, err := strconv.ParseUint(string(a), 16, 64)
	if err != nil {
		return 0, 0, nil, nil, false
	}
	typ, name = rest[0], rest[2:]
	if n, m, found := bytes.Cut(name, []byte("\t")); found {
		name, module = n, bytes.Trim(m, "[]")
	}
	if len(name) > math.MaxUint16 {
		return 0, 0, nil, nil, false
	}
	return addr, typ, name, module, true
}

// kallsymRank says how good a name is among several for one address: code before data, strong before weak, global before
// local, few leading underscores before many, real functions before the linker's section marks.
func kallsymRank(typ byte, name []byte) uint8 {
	var r uint8
	switch typ {
	case 'T':
		r = 0xe0
	case 't':
		r = 0xc0
	case 'W', 'w':
		r = 0xa0
	default:
		return 0
	}
	underscores := min(len(name)-len(bytes.TrimLeft(name, "_")), 0xf)
	for _, mark := range [][]byte{[]byte("_text"), []byte("_stext"), []byte("_etext"), []byte("_end"), []byte("_start")} {
		if bytes.HasSuffix(name, mark) {
			return r &^ 0x60 >> 1
		}
	}
	return r + 0xf - uint8(underscores)
}
