package sampler

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MayFreeze reports whether a kernel release has the bug that reading user memory from an interrupt takes a sleeping lock, which
// can freeze the machine: copy_from_user_nofault() of 5.19 to 6.3, mended by commit d319f344561d in 6.4. Of these only 6.1 is
// still maintained; that its releases from .40 on have the fix is a careful guess, for 6.1.25 was seen to freeze.
func MayFreeze(release string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(strings.SplitN(release, "-", 2)[0], "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false // cannot tell
	}
	switch {
	case major == 5:
		return minor >= 19
	case major == 6 && minor == 1:
		return patch < 40
	case major == 6:
		return minor < 4
	}
	return false
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "" // cannot be: the buffer is ours
	}
	return unix.ByteSliceToString(u.Release[:])
}
