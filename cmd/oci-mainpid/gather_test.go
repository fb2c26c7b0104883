package main

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestGather(t *testing.T) {
	failed := errors.New("failed")
	forever := make(chan struct{})
	defer close(forever)
	done, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithTimeout(context.Background(), 1)
	defer cancelLate()
	for name, c := range map[string]struct {
		ctx  context.Context
		find func(context.Context, *gathering[int]) error
		want []int
		err  error
	}{
		"all":           {context.Background(), func(_ context.Context, g *gathering[int]) error { g.add(1, 2); return nil }, []int{1, 2}, nil},
		"fails":         {context.Background(), func(_ context.Context, g *gathering[int]) error { g.add(1); return failed }, []int{1}, failed},
		"interrupted":   {done, func(context.Context, *gathering[int]) error { <-forever; return nil }, []int{}, errInterrupted},
		"never answers": {late, func(context.Context, *gathering[int]) error { <-forever; return nil }, []int{}, lateError{}},
	} {
		got, err := gather(c.ctx, c.find)
		if !slices.Equal(got, c.want) || err != c.err {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
