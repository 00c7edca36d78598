package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/stoker-profiler/stoker/sink/web"
)

// Exit codes: part of the command line's contract.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2 // a flag, an argument or the configuration is wrong
	exitNoTarget = 3 // no such container or process
	exitMachine  = 4 // this machine cannot do it, or not for this user; the message says what to change
)

// exitError is an error with the exit code that belongs to it.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usage makes the error for wrong use.
func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// machine makes the error for something that the machine, or this user on it, cannot do. remedy is a full clause.
func machine(err error, remedy string) error {
	return &exitError{exitMachine, fmt.Errorf("%w: %s", err, remedy)}
}

// remedier is an error of a part that knows what the machine lacks (the sampler's, for one).
type remedier interface {
	error
	Remedy() string
}

// exitCode says how the program ends.
func exitCode(err error) int {
	var (
		coded  *exitError
		answer *web.Error
		lacks  remedier
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &answer):
		switch answer.Status {
		case http.StatusBadRequest:
			return exitUsage
		case http.StatusNotFound:
			return exitNoTarget
		case http.StatusForbidden, http.StatusNotImplemented:
			return exitMachine
		}
	case errors.As(err, &lacks):
		return exitMachine
	}
	return exitFailed
}

// message is what the user reads: one paragraph, the remedy included.
func message(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	text := err.Error()
	var lacks remedier
	if errors.As(err, &lacks) && !strings.Contains(text, lacks.Remedy()) {
		text += ": " + lacks.Remedy()
	}
	return text
}
