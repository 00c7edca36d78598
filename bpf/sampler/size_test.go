package sampler

import (
	"runtime"
	"testing"
	"time"
)

func TestSizeOfAWindow(t *testing.T) {
	c := Config{FrequencyHz: 97, MaxWindowKeys: 1 << 20}
	cpus := runtime.NumCPU()
	if n := c.windowKeys(97, 10*time.Second); n < min(970*cpus, 8192) || n > max(1100*cpus, 1024) {
		t.Errorf("at 97 Hz a window of 10 s has room for %d stacks on %d CPUs", n, cpus)
	}
	if n := c.windowKeys(10000, time.Hour); n != max(8192, 512*cpus) {
		t.Errorf("a window has room for %d stacks at most", n)
	}
	if n := c.windowKeys(1, time.Millisecond); n != c.minWindowKeys() {
		t.Errorf("a window has room for %d stacks at least, not %d", n, c.minWindowKeys())
	}
	c.MaxWindowKeys = 16
	if n := c.windowKeys(97, 10*time.Second); n != 16 {
		t.Errorf("a window that may have 16 stacks has %d", n)
	}
}
