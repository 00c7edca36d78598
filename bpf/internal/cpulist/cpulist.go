// Package cpulist reads the kernel's lists of CPUs, such as /sys/devices/system/cpu/online. Pure parsing, no I/O.
package cpulist

import (
	"fmt"
	"strconv"
	"strings"
)

// maxCPU bounds what we believe; the kernel's own NR_CPUS goes to 8192.
const maxCPU = 1 << 16

// Parse reads "0-3,8,10-11\n" (Documentation/admin-guide/cputopology.rst). The empty list is empty.
func Parse(list string) (map[int]bool, error) {
	cpus := map[int]bool{}
	list = strings.TrimSpace(list)
	if list == "" {
		return cpus, nil
	}
	for _, part := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 0 || to < from || to >= maxCPU {
			return nil, fmt.Errorf("CPU list %.100q: bad entry %.40q", list, part)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus[cpu] = true
		}
	}
	return cpus, nil
}
