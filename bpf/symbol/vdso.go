package symbol

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// maxVDSO is larger than any vDSO: they have one to four pages.
const maxVDSO = 1 << 20

// VDSO returns the symbols of the vDSO, the code that the kernel maps into every process. It is the kernel's, so the one of
// our own process serves for all 64-bit processes. Offsets in the mapping are its file offsets. The result of the first call
// is kept.
func VDSO() (*Object, error) { return vdso() }

var vdso = sync.OnceValues(func() (*Object, error) {
	o, err := readVDSO()
	if err != nil {
		return nil, fmt.Errorf("read the vDSO of our own process: %w", err)
	}
	return o, nil
})

func readVDSO() (*Object, error) {
	b, err := VDSOImage()
	if err != nil {
		return nil, err
	}
	return parse(bytes.NewReader(b), int64(len(b)), maxVDSO)
}

// VDSOImage reads the vDSO's ELF file from our own memory.
func VDSOImage() ([]byte, error) {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var start, end uint64
	for in := bufio.NewScanner(maps); in.Scan(); {
		if strings.HasSuffix(in.Text(), "[vdso]") {
			if _, err := fmt.Sscanf(in.Text(), "%x-%x", &start, &end); err != nil {
				return nil, fmt.Errorf("parse %q: %w", in.Text(), err)
			}
		}
	}
	if end <= start || end-start > maxVDSO {
		return nil, errors.New("no [vdso] in /proc/self/maps: the kernel runs with vdso=0")
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	b := make([]byte, end-start)
	if _, err := mem.ReadAt(b, int64(start)); err != nil {
		return nil, err
	}
	return b, nil
}
