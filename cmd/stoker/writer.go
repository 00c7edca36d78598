package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// writer carries finished profiles to the store, so that a slow disk holds up neither sampling nor symbolizing. What the store
// cannot take is counted and said, not kept: memory is for the next window.
type writer struct {
	sink  sink.Sink
	log   *slog.Logger
	queue chan []sink.Profile
	busy  sync.WaitGroup // windows queued or being written

	failing  atomic.Pointer[error] // the last write's error; nil when it worked
	written  atomic.Uint64         // profiles
	lostFull atomic.Uint64         // profiles that found the queue full
	lostErr  atomic.Uint64         // profiles that the sink refused
}

// writerQueue is how many windows may wait for the disk.
const writerQueue = 8

func newWriter(s sink.Sink, log *slog.Logger) *writer {
	return &writer{sink: s, log: log, queue: make(chan []sink.Profile, writerQueue)}
}

// write queues the profiles of one window; it never blocks.
func (w *writer) write(profiles []sink.Profile) {
	w.busy.Add(1)
	select {
	case w.queue <- profiles:
	default:
		w.busy.Done()
		w.lostFull.Add(uint64(len(profiles)))
		w.log.Warn("the disk is too slow: a window's profiles are lost", "profiles", len(profiles), "waiting_windows", writerQueue)
	}
}

// run writes what is queued until ctx ends.
func (w *writer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case profiles := <-w.queue:
			w.one(ctx, profiles)
			w.busy.Done()
		}
	}
}

func (w *writer) one(ctx context.Context, profiles []sink.Profile) {
	err := w.sink.Write(ctx, profiles)
	before := w.failing.Load()
	if err == nil {
		w.written.Add(uint64(len(profiles)))
		if w.failing.Swap(nil) != nil {
			w.log.Info("profiles are stored again", "sink", w.sink.Name())
		}
		return
	}
	w.lostErr.Add(uint64(len(profiles)))
	w.failing.Store(&err)
	if before == nil || (*before).Error() != err.Error() { // once per trouble, not once per window
		w.log.Error("profiles cannot be stored; sampling goes on", "sink", w.sink.Name(), "profiles", len(profiles), "err", err)
	}
}

// flush waits until all that is queued is written; run is still running.
func (w *writer) flush() {
	done := make(chan struct{})
	go func() { w.busy.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		w.log.Error("the last windows could not be written in 10 s", "err", errors.New("the disk does not answer"))
	}
}
