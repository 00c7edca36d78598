package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/stoker-profiler/stoker/bpf/sampler"
)

// notifier tells the service manager how the agent does, as sd_notify(3) has it. Where nobody listens ($NOTIFY_SOCKET is not set) it
// does nothing. Any goroutine may call it.
type notifier struct{ log *slog.Logger }

// say sends one message. One that does not arrive has no consequence here: the manager will notice by itself.
func (n notifier) say(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn("the service manager cannot be told how stoker does", "message", state, "err", err)
	}
}

// watchdogWindows is how many windows may pass without a sign of life before the manager ends us. One may be late: symbols of a
// large program are read in between.
const watchdogWindows = 3

// starting asks for more patience than the unit has, where windows are long.
func (n notifier) starting(window time.Duration) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("how long the service manager waits for a sign of life is not known", "err", err)
	}
	if least := watchdogWindows * window; interval != 0 && interval < least {
		n.say(fmt.Sprintf("WATCHDOG_USEC=%d", least.Microseconds()))
	}
}

func (n notifier) ready()    { n.say(daemon.SdNotifyReady) }
func (n notifier) stopping() { n.say(daemon.SdNotifyStopping) }

// reloading must be followed by ready, whatever comes of it.
func (n notifier) reloading() {
	n.say(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// watched is the pipeline of an agent whose service manager watches it. The sign of life is given at the end of a window: then the
// sampler has read the kernel's counts and the pipeline has worked on them. Windows end when nothing is in scope, too.
type watched struct {
	*pipeline
	notify notifier
	state  func() string // what to show, in a few words
}

// Window implements [sampler.Handler].
func (w watched) Window(win sampler.Window) {
	w.pipeline.Window(win)
	w.notify.say(daemon.SdNotifyWatchdog + "\nSTATUS=" + w.state())
}
