package registry

import (
	"fmt"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// This file is the door: what a source says is brought within bounds before anything else looks at it, and a source that says too
// much does not get more room than one may have. What one source says costs no other its room.

// room is what is remembered for one source.
type room struct {
	records, bytes int  // about: exact at each window's end
	warned         bool // that something was cut, refused or left out: said once
}

// admit bounds what an event says. It reports whether there is a container in it, and room for it.
func (r *Registry) admit(s *source, e *container.Event) bool {
	c := &e.Container
	changed, err := c.Bound()
	if err != nil {
		r.stats.refused++
		r.warn(s, e, err.Error())
		return false
	}
	known := r.known(c)
	if known == nil && s.records >= container.MaxContainers {
		r.stats.tooMany++
		r.warn(s, e, "it tells of more containers than any node has: further ones are left out")
		return false
	}
	before := 0
	if known != nil && known.told[e.Source] != nil {
		before = known.told[e.Source].size
	}
	if changed > 0 {
		r.stats.cut += uint64(changed)
		r.warn(s, e, fmt.Sprintf("names or labels of container %.80q were cut or mended", displayName(c)))
	}
	if size := c.Size(); size > before && s.bytes-before+size > container.MaxTold {
		c.Strip()
		r.stats.stripped++
		r.warn(s, e, "its containers have more labels than can be kept: further ones are left out")
	}
	return true
}

// warn says once what a source has us do; the metrics count the rest.
func (r *Registry) warn(s *source, e *container.Event, what string) {
	if s.warned {
		return
	}
	s.warned = true
	r.log.Warn("a source says more than it should; this is said once, stoker_registry_cases_total counts", "source", e.Source, "what", what)
}

// known finds the record that hearing of a container adds to; nil means that it may make one.
func (r *Registry) known(c *container.Container) *record {
	if c.CgroupID != 0 {
		return r.byCgroup[c.CgroupID]
	}
	for _, rec := range r.byID[c.ID] {
		if !rec.gone && compatible(&rec.c, c) {
			return rec
		}
	}
	return nil
}

// measure works out anew how much is remembered for each source.
func (r *Registry) measure() {
	for _, s := range r.sources {
		s.records, s.bytes = 0, 0
	}
	for rec := range r.records {
		for name, w := range rec.told {
			if s := r.sources[name]; s != nil {
				s.records++
				s.bytes += w.size
			}
		}
	}
}
