package main

import (
	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/labeler"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/sink/pyroscope"
	"github.com/stoker-profiler/stoker/sink/store"
)

// This file turns the operator's configuration into that of the parts, which know nothing of files and flags.

func targetRules(cfg config.Config) []registry.Rule {
	rules := make([]registry.Rule, 0, len(cfg.Targets))
	for _, r := range cfg.Targets {
		rules = append(rules, registry.Rule(r))
	}
	return rules
}

func labelPolicy(cfg config.Config) registry.LabelPolicy {
	return registry.LabelPolicy(cfg.ContainerLabels)
}

// labels is what the labeler needs of the configuration.
func (a *agent) labels(cfg config.Config) labeler.Config {
	return labeler.Config{Node: a.node, Static: cfg.Labels, Relabel: cfg.Relabel}
}

func (a *agent) storeConfig() store.Config {
	c := a.cfg.Store
	names := make([]string, 0, len(a.uploaders))
	for _, u := range a.uploaders {
		names = append(names, u.Name())
	}
	return store.Config{
		Path: c.Path, MaxBytes: int64(c.MaxSize), MaxAge: c.MaxAge, MinFree: float64(c.MinFree), Sinks: names, Log: a.log,
		Tolerant: true, // top, record and the scopes work without a store; it is tried again with each window
	}
}

func endpoint(e config.Endpoint) pyroscope.Config {
	return pyroscope.Config{
		Name: e.Name, URL: e.URL, TenantID: e.TenantID, BasicAuth: pyroscope.BasicAuth(e.BasicAuth),
		Authorization: pyroscope.Authorization(e.Authorization), BearerTokenFile: e.BearerTokenFile, Headers: e.Headers,
		TLS: pyroscope.TLS(e.TLS), Timeout: e.RemoteTimeout,
	}
}

func deliverConfig(e config.Endpoint) store.DeliverConfig {
	return store.DeliverConfig{Uncertain: e.Uncertain}
}
