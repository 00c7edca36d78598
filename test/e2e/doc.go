// Package e2e has only tests, under the build tag root: the built agent, as a process of its own, on containers of a real
// containerd in which programs of known truth run (test/workload). They read what the agent stored, serves and pushes, and
// compare it with the truth: shares of functions, the CPU time that the cgroups were charged, labels. Each test has its own
// agent, store and sockets; one containerd serves all, and nothing of it is left at the end.
package e2e
