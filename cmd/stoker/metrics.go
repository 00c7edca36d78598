package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// newMetrics makes the page of /metrics: each part's counters, read when somebody asks. docs/metrics.md explains them.
func (a *agent) newMetrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), // own CPU and RSS
		collectors.NewGoCollector(),
		agentCollector{a},
		a.store.Collector(),
	)
	for _, u := range a.uploaders {
		if c, ok := u.(interface{ Collector() prometheus.Collector }); ok {
			r.MustRegister(c.Collector())
		}
	}
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("stoker_"+name, help, labels, nil)
}

var (
	descSamples    = desc("samples_total", "Samples in scope by how they ended; their sum is what was taken.", "outcome")
	descTaken      = desc("samples_taken_total", "Samples in scope.")
	descRuns       = desc("clock_runs_total", "Ticks of the CPU clock on busy CPUs that ran the sampler.")
	descMissed     = desc("clock_missed_total", "Ticks of the CPU clock on busy CPUs that the kernel did not deliver, because other BPF ran there; as exact as /proc/stat.")
	descStacks     = desc("stacks_total", "Stacks that crossed from the kernel, by whether they were new.", "kind")
	descKnown      = desc("stacks_held", "Stacks held in user space.")
	descLost       = desc("lost_total", "What was lost, by cause; a cause of samples loses their stack or name, never the sample.", "cause")
	descEvents     = desc("sampler_events_total", "Events of the kernel side that are no sample's outcome.", "event")
	descCapability = desc("capability", "1 for a capability that the agent has, 0 for one whose lack is a degradation.", "capability")
	descWindows    = desc("windows_total", "Windows closed.")
	descMaps       = desc("kernel_map_bytes", "Kernel memory of the BPF maps.")
	descHeld       = desc("windows_held", "Windows of containers that wait for their names.")
	descProfiles   = desc("profiles_total", "Profiles built.")
	descWritten    = desc("sink_writes_total", "Profiles handed to a sink, by result.", "sink", "result")
	descBuild      = desc("build_info", "Always 1.", "version")
	descFileCache  = desc("symbol_cache_bytes", "Bytes of symbols held.")
	descFiles      = desc("symbol_cache_files", "Files whose symbols are held.")
	descDebuginfod = desc("debuginfod_requests_total", "Debug files that debuginfod servers were asked for, by result.", "result")
	descFetched    = desc("debuginfod_received_bytes_total", "Bytes that debuginfod servers sent.")
	descDebugBytes = desc("debuginfod_cache_bytes", "Bytes of debug files kept.")
	descDebugFiles = desc("debuginfod_cache_files", "Debug files kept.")
	descDebugWait  = desc("debuginfod_waiting", "Build ids that wait to be asked for.")
	descSource     = desc("source_cases_total", "What a source of containers had to decide or could not do.", "source", "case")
	descFrames     = desc("frames_total", "Frames of new stacks, by how they were named.", "named")
	descUnwinder   = desc("unwinder_total", "What an unwinder counts of its own.", "unwinder", "counter")
	descStackBytes = desc("stacks_bytes", "Memory for stacks held, about.")
	descEpochs     = desc("epochs_raised_total", "Times that a process's stacks were asked for again, because its mappings changed.")
	descProcesses  = desc("processes", "Processes in scope that are remembered.")
	descMapReads   = desc("process_maps_reads_total", "Reads of /proc/PID/maps by result.", "result")
)

// agentCollector reads the agent's counters.
type agentCollector struct{ a *agent }

// Describe implements prometheus.Collector. Metrics whose labels come from the kernel side are not known before they are read.
func (c agentCollector) Describe(ch chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c agentCollector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	a := c.a
	gauge(descBuild, 1, a.version)
	for _, c := range privilege.Table {
		has := 0.0
		if a.rights.Has(c) {
			has = 1
		}
		gauge(descCapability, has, c.Name)
	}
	st, err := a.sampler.Stats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descSamples, err)
		return
	}
	for outcome, n := range st.Outcomes {
		counter(descSamples, float64(n), outcome)
	}
	for event, n := range st.Events {
		counter(descEvents, float64(n), event)
	}
	counter(descTaken, float64(st.Taken))
	counter(descRuns, float64(st.Runs))
	counter(descMissed, max(0, st.Ticks-float64(st.Runs)))
	counter(descStacks, float64(st.StacksNew), "new")
	counter(descStacks, float64(st.StacksAgain), "again")
	gauge(descKnown, float64(st.StacksKnown))
	counter(descWindows, float64(st.Windows))
	gauge(descMaps, float64(st.MapBytes))

	p := &a.pipeline.stats
	gauge(descHeld, float64(p.heldWindows.Load()))
	counter(descProfiles, float64(p.profiles.Load()))
	for cause, n := range map[string]uint64{
		"stack_not_delivered":  p.notDelivered.Load(),
		"stack_lost":           p.lostStacks.Load(),
		"window_overflow":      p.overflowed.Load(),
		"unknown_scope":        p.unknownScopes.Load(),
		"excluded_by_rules":    p.excludedSamples.Load(),
		"bad_ring_record":      st.BadRecords,
		"store_queue_full":     a.writer.lostFull.Load(),
		"store_write_failed":   a.writer.lostErr.Load(),
		"process_record_lost":  st.Events["exec_lost"],
		"process_hints_lost":   st.Events["hints_lost"],
		"process_table_full":   st.Events["process_full"],
		"profile_frames_cut":   p.cutStacks.Load(),
		"profile_not_possible": p.buildErrors.Load(),
	} {
		counter(descLost, float64(n), cause)
	}
	counter(descWritten, float64(a.writer.written.Load()), "store", "ok")
	counter(descWritten, float64(a.writer.lostErr.Load()+a.writer.lostFull.Load()), "store", "failed")

	for _, m := range a.registry.Stats().Metrics() {
		kind := prometheus.GaugeValue
		if m.Counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.Name, m.Help, m.Labels, nil), kind, m.Value, m.Values...)
	}

	for _, s := range a.sources {
		if c, ok := s.(container.CountReporter); ok {
			for name, n := range c.Counts() {
				counter(descSource, float64(n), s.Name(), name)
			}
		}
	}

	ss := a.symbolizer.Stats()
	for named, n := range ss.Frames {
		counter(descFrames, float64(n), named)
	}
	for unwinder, counters := range ss.Unwinders {
		for name, n := range counters {
			counter(descUnwinder, float64(n), unwinder, name)
		}
	}
	gauge(descStackBytes, float64(ss.Bytes))
	counter(descEpochs, float64(ss.Epochs))
	gauge(descProcesses, float64(ss.Processes.Processes))
	for result, n := range map[string]uint64{
		"ok": ss.Processes.Reads, "gone": ss.Processes.Gone, "stale": ss.Processes.Stale, "denied": ss.Processes.Denied,
		"failed": ss.Processes.Failed, "too_many": ss.Processes.TooMany, "held": ss.Processes.Held,
	} {
		counter(descMapReads, float64(n), result)
	}
	for cause, n := range map[string]uint64{
		"stack_over_budget":   ss.OverBudget,
		"process_evicted":     ss.Processes.Evicted,
		"epoch_not_raised":    ss.EpochErrors,
		"label_dropped":       a.labeler.Load().Stats().Dropped,
		"label_cut":           a.labeler.Load().Stats().Cut,
		"label_clash":         a.labeler.Load().Stats().Clashes,
		"profile_strings_cut": p.badStrings.Load(),
	} {
		counter(descLost, float64(n), cause)
	}
	if a.debugFiles != nil {
		ds := a.debugFiles.Stats()
		for result, n := range map[string]uint64{
			"found": ds.Found, "absent": ds.Absent, "refused": ds.Refused, "failed": ds.Failed, "not_saved": ds.Unsaved, "dropped": ds.Dropped,
		} {
			counter(descDebuginfod, float64(n), result)
		}
		counter(descFetched, float64(ds.Received))
		gauge(descDebugBytes, float64(ds.Bytes))
		gauge(descDebugFiles, float64(ds.Files))
		gauge(descDebugWait, float64(ds.Waiting))
	}
	fs := a.files.Stats()
	gauge(descFileCache, float64(fs.Bytes))
	gauge(descFiles, float64(fs.Files))
}
