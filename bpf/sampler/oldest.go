package sampler

import (
	"errors"
	"fmt"
)

// The oldest kernel that the tests run in (docs/kernels.md).
const (
	oldestMajor = 6
	oldestMinor = 1
)

// OldestKernel names it for people.
var OldestKernel = fmt.Sprintf("%d.%d", oldestMajor, oldestMinor)

// TooOld reports whether a kernel release, as uname -r prints it, is older than any that the tests run in. A release that is no number
// is not.
func TooOld(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 {
		return false
	}
	return major < oldestMajor || major == oldestMajor && minor < oldestMinor
}

// errTooOld is what comes back from a kernel that is refused.
var errTooOld = errors.New("it is older than any that stoker is tested with")

// tested refuses a kernel that nobody tried, unless it was asked for.
func (c *Config) tested(release string) error {
	if !TooOld(release) {
		return nil
	}
	if c.UntestedKernel {
		c.Log.Warn("stoker is not tested with this kernel", "release", release, "tested_from", OldestKernel)
		return nil
	}
	return &MachineError{
		What: "sample on Linux " + release, Err: errTooOld,
		Fix: fmt.Sprintf("use Linux %s or newer, or try this one at your own risk: sampling.untested_kernel: true in the configuration, "+
			"--sampling-untested-kernel, or STOKER_SAMPLING_UNTESTED_KERNEL=true", OldestKernel),
	}
}
