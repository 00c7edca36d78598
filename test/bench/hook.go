package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
)

// hookEnv is what `stoker hook install` gives the hook, with a socket of its own.
func hookEnv(socket string) []string {
	return []string{"GOMAXPROCS=1", wire.SocketVariable + "=" + socket}
}

// hookAlone compares the hook's process with one that does nothing, in turn, a thousand times each. It announces a container that
// there is not, which an agent looks into as into any other and refuses.
func hookAlone(ctx context.Context, when, empty, hook, socket string) error {
	const runs = 1000
	took := map[string][]time.Duration{}
	for range runs {
		for _, program := range []string{empty, hook} {
			cmd := exec.CommandContext(ctx, program)
			cmd.Env = hookEnv(socket)
			cmd.Stdin = strings.NewReader(`{"ociVersion":"1.0.2","id":"none","status":"creating","pid":1,"bundle":"/"}`)
			began := time.Now()
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("run %s: %w", program, err)
			}
			took[program] = append(took[program], time.Since(began))
		}
	}
	fmt.Printf("the process alone, %d times, when %s\n", runs, when)
	slices.Sort(took[empty])
	slices.Sort(took[hook])
	for _, q := range []int{50, 99} {
		e, h := took[empty][runs*q/100], took[hook][runs*q/100]
		ratio := float64(h) / float64(e)
		word := ""
		if q == 99 {
			word = ", within the bar of 3"
			if ratio > 3 {
				word = ", ABOVE the bar of 3"
			}
		}
		fmt.Printf("  p%d  an empty static program %.2f ms, stoker-hook %.2f ms: %.2f times%s\n", q, e.Seconds()*1e3, h.Seconds()*1e3, ratio, word)
	}
	fmt.Println()
	return nil
}
