package unwind

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Reads that never end hold up stacks for a moment only, and each container has its own patience.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience()
		never, began := make(chan struct{}), time.Now()
		stuck := func() (int, error) { <-never; return 0, nil }
		quick := func() (int, error) { return 7, nil }
		for scope := range uint32(20) {
			if _, err := Patiently(p, scope, stuck); !errors.Is(err, ErrSlow) {
				t.Fatalf("got %v", err)
			}
			if _, err := Patiently(p, scope, stuck); !errors.Is(err, ErrSlow) { // its first one has not ended
				t.Fatalf("got %v", err)
			}
		}
		if d := time.Since(began); d != maxStuck*maxPatience {
			t.Errorf("waited %v for 20 containers", d)
		}
		if _, err := Patiently(p, 99, quick); !errors.Is(err, ErrSlow) {
			t.Errorf("as many are stuck as may be: got %v", err)
		}
		close(never)
		synctest.Wait()
		if v, err := Patiently(p, 99, quick); v != 7 || err != nil {
			t.Errorf("got %d, %v", v, err)
		}

		// One that answers each time just before our patience ends has used it up after two, until the window ends.
		slow := func() (int, error) { time.Sleep(maxPatience - 1); return 1, nil }
		for i, want := range []error{nil, nil, ErrSlow} {
			if _, err := Patiently(p, 100, slow); !errors.Is(err, want) {
				t.Errorf("%d: got %v, want %v", i, err, want)
			}
		}
		time.Sleep(maxPatience)
		synctest.Wait()
		p.windowEnd()
		if _, err := Patiently(p, 100, slow); err != nil {
			t.Errorf("in the next window: %v", err)
		}
	})
}
