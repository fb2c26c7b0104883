package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// gatherTimeout is how long a command reads other users' files and processes before
// it shows what it has.
const gatherTimeout = 30 * time.Second

// gathering is what a command has found so far.
type gathering[T any] struct {
	mutex sync.Mutex
	items []T
	at    string
}

// look notes what is read from now on.
func (g *gathering[T]) look(at string) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.at = at
}

// add adds what was read.
func (g *gathering[T]) add(items ...T) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.items = append(g.items, items...)
}

// errInterrupted says that a signal ended a command.
var errInterrupted = errors.New("interrupted")

// lateError says what a command was reading when its time was over.
type lateError struct{ at string }

func (e lateError) Error() string {
	return fmt.Sprintf("gave up after %v while reading %s; the output is incomplete", gatherTimeout, e.at)
}

// gather returns what find has added, even if find does not return, because a user may
// have found a way to keep find waiting. The error is then a lateError, or
// errInterrupted if ctx has ended.
func gather[T any](ctx context.Context, find func(ctx context.Context, g *gathering[T]) error) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	var g gathering[T]
	found := make(chan error, 1)
	go func() { found <- find(ctx, &g) }()
	var err error
	select {
	case err = <-found:
	case <-ctx.Done():
	}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	switch ctx.Err() {
	case nil:
	case context.DeadlineExceeded:
		err = lateError{g.at}
	default:
		err = errInterrupted
	}
	return append([]T{}, g.items...), err
}
