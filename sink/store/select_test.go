package store

import (
	"context"
	"testing"
	"time"
)

// A consumer that breaks off because its own context has ended must not be called again: range over it would panic.
func TestConsumerThatBreaksOffIsNotCalledAgain(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := small()
	for range 3 {
		write(t, s, w.window(t, clock, "cart", 5))
		clock.pass(10 * time.Second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range s.Select(ctx, Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		cancel()
		break
	}
	if n != 1 {
		t.Errorf("%d profiles before the end, want 1", n)
	}
}
