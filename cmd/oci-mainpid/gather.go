package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// gatherTimeout is how long a command looks at other users' files and processes
// before it shows what it has.
const gatherTimeout = 30 * time.Second

// gathering is what a command has found so far.
type gathering[T any] struct {
	mutex sync.Mutex
	items []T
	at    string
}

// look says what is looked at from now on.
func (g *gathering[T]) look(at string) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.at = at
}

// add adds what was found.
func (g *gathering[T]) add(items ...T) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.items = append(g.items, items...)
}

// errInterrupted says that a signal ended a command.
var errInterrupted = errors.New("interrupted")

// lateError says what kept a command waiting for too long.
type lateError struct{ at string }

func (e lateError) Error() string {
	return fmt.Sprintf("gave up after %v, looking at %s; what is shown is not all", gatherTimeout, e.at)
}

// gather returns what find finds, even if find does not return: somebody may have
// found a way to keep it waiting. The error is then a lateError, or errInterrupted
// if ctx has ended.
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
