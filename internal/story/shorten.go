package story

import (
	"regexp"
	"slices"
	"sync"
)

// Bounds of the story.
const (
	maxFirst  = 30 // events of one source, from the first
	maxLast   = 10 // and from the last
	maxOutput = 10 // last lines of the container
)

// shorten leaves out events that do not help: those while the unit ran well,
// repetitions, and most events of a source that has very many.
func (t *teller) shorten() {
	over := t.Took + grace
	t.Events = slices.DeleteFunc(t.Events, func(e Event) bool {
		// The container's last lines are told at the end.
		return t.ended > 0 && e.At > over && (t.isUp() || e.Source == container && !e.Derived)
	})
	t.Events = joinRepeated(t.Events)
	t.Events, t.LeftOut = leaveOut(t.Events)
}

var number = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9]+`) })

// joinRepeated joins repetitions, such as the messages of each health check. From the
// third time on, an event in which a source says the same becomes part of the third.
func joinRepeated(events []Event) []Event {
	type saying struct {
		source, text string
		verdict      Verdict
	}
	key := func(e Event) saying {
		text := e.Text
		if e.Source == userManager || isPodmans(e.Source) {
			text = number().ReplaceAllString(text, "0") // such as a time, or 2 of 3
		}
		return saying{e.Source, text, e.Verdict}
	}
	count := map[saying]int{}
	for _, e := range events {
		count[key(e)]++
	}
	first := map[saying]int{}
	var kept []Event
	for _, e := range events {
		k := key(e)
		i, again := first[k]
		switch {
		case count[k] < 3 || e.Derived:
		case again:
			kept[i].Again++
			kept[i].Last = e.At
			continue
		default:
			first[k] = len(kept)
		}
		kept = append(kept, e)
	}
	return kept
}

// leaveOut drops most events of a source that has very many, so that they do not
// hide those of other sources. It also returns how many it dropped, by source.
func leaveOut(events []Event) ([]Event, map[string]int) {
	count := map[string]int{}
	for _, e := range events {
		count[bucket(e)]++
	}
	seen, leftOut := map[string]int{}, map[string]int{}
	kept := slices.DeleteFunc(events, func(e Event) bool {
		k := bucket(e)
		seen[k]++
		if k == "" || seen[k] <= maxFirst || seen[k] > count[k]-maxLast {
			return false
		}
		leftOut[k]++
		return true
	})
	return kept, leftOut
}

// bucket returns the name under which leaveOut counts an event, "" for root's
// events, which are always kept. All names that a user can choose are one bucket.
func bucket(e Event) string {
	switch {
	case e.Derived || e.Source == systemPID1 || isReserved(e.Source):
		return ""
	case e.Source == container || e.Source == userManager || isPodmans(e.Source):
		if e.Verdict != None {
			return e.Source + ", errors"
		}
		return e.Source
	}
	return "others"
}
