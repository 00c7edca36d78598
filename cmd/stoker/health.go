package main

import (
	"fmt"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink/web"
)

// Health implements [web.Backend].
func (b backend) Health() web.Health {
	a := b.a
	h := web.Health{Version: a.version, Node: a.node, StartedAt: a.startedAt}
	part := func(name string, state web.HealthState, message, remedy string) {
		h.Parts = append(h.Parts, web.HealthPart{Name: name, State: state, Message: message, Remedy: remedy})
	}
	kernelErr := a.kernelErr
	if a.blind != nil {
		part("sampler", web.Failing, a.blind.Error(), a.blind.Remedy())
	} else if st, err := a.sampler.Stats(); err != nil {
		part("sampler", web.Failing, err.Error(), "restart stoker")
	} else {
		part("sampler", web.OK, fmt.Sprintf("%d containers in scope", st.Scopes), "")
		h.Samples.Taken = int64(st.Taken)
		for _, outcome := range []string{"undelivered", "overflow", "no_unwinder", "compat"} {
			h.Samples.Lost += int64(st.Outcomes[outcome])
		}
		if lost := h.Samples.Lost; lost*20 > h.Samples.Taken { // more than 5 %
			part("stacks", web.Degraded, fmt.Sprintf("%d of %d samples have no stack", lost, h.Samples.Taken),
				"/metrics tells the causes (stoker_samples_total)")
		}
	}
	for _, c := range a.rights.Missing() {
		part(c.Name, web.Degraded, "missing: "+c.Lost, c.Remedy()) // that nothing is sampled is the sampler's to say
		if c.Name == "CAP_SYSLOG" {
			kernelErr = nil // that is why
		}
	}
	if kernelErr != nil {
		part("kernel symbols", web.Degraded, kernelErr.Error(), "sysctl kernel.kptr_restrict=1; in a unit, no ProcSubset=, ProtectKernelLogs= or ProtectKernelTunables=")
	}
	for _, s := range a.sources {
		r, ok := s.(container.StatusReporter)
		if !ok {
			continue
		}
		switch st := r.Status(); {
		case st.Connected && st.Err == "":
			part("source "+s.Name(), web.OK, "connected", "")
		case st.Connected:
			part("source "+s.Name(), web.Degraded, st.Err, "what it tells may be late or incomplete until then")
		case st.Absent:
			part("source "+s.Name(), web.OK, st.Err, "")
		default:
			part("source "+s.Name(), web.Degraded, st.Err, "its containers are found by their cgroups until then, without names")
		}
	}
	if w := a.writer; w != nil {
		trouble := a.store.Stats().Err
		if err := w.failing.Load(); err != nil {
			trouble = (*err).Error()
		}
		if trouble != "" {
			part("store", web.Failing, trouble, "sampling goes on; profiles are kept again as soon as the store can")
		} else {
			part("store", web.OK, a.cfg.Store.Path, "")
		}
	}
	return h
}
