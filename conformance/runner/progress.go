package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// pulseEvery is how long nothing is said while no test ends.
const pulseEvery = time.Minute

// usualSeconds is how long tests took in a recorded run that passed the most.
func usualSeconds(o options) map[string]float64 {
	files, err := filepath.Glob(filepath.Join(home(o), "results", "*.json"))
	if err != nil {
		return nil
	}
	var usual map[string]float64
	most := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var k recorded
		// Estimates only: a file that cannot be read is told of when it is written.
		if json.Unmarshal(data, &k) == nil && len(k.Seconds) > most {
			usual, most = k.Seconds, len(k.Seconds)
		}
	}
	return usual
}

// left are the selected tests that are not done yet: those that may run with
// others, and those that must be alone.
func (r *results) left() (parallel, serial []spec) {
	for _, s := range r.chosen {
		if t := r.byName[s.Name]; t != nil && t.done() {
			continue
		}
		if s.is("Serial") {
			serial = append(serial, s)
		} else {
			parallel = append(parallel, s)
		}
	}
	return parallel, serial
}

// estimate is how many seconds the tests still take, running for some of them
// so long already. A test that has no usual time takes what is usual on average.
func estimate(parallel, serial []spec, procs int, usual map[string]float64, elapsed func(name string) float64) float64 {
	average := 15.0
	if len(usual) > 0 {
		sum := 0.0
		for _, seconds := range usual {
			sum += seconds
		}
		average = sum / float64(len(usual))
	}
	one := func(s spec) float64 {
		seconds, ok := usual[s.Name]
		if !ok {
			seconds = average
		}
		return max(seconds-elapsed(s.Name), 1)
	}
	sum, longest := 0.0, 0.0
	for _, s := range parallel {
		seconds := one(s)
		sum += seconds
		longest = max(longest, seconds)
	}
	// Not shorter than the longest of them.
	total := max(sum/float64(max(procs, 1)), longest)
	for _, s := range serial {
		total += one(s)
	}
	return total
}

// end is when the run is expected to end.
func (r *results) end(now time.Time) time.Time {
	parallel, serial := r.left()
	seconds := estimate(parallel, serial, r.procs, r.usual, func(name string) float64 {
		if t := r.byName[name]; t != nil && t.State == running {
			return now.Sub(t.began).Seconds()
		}
		return 0
	})
	return now.Add(time.Duration(seconds * float64(time.Second)))
}

// counts is where the run is: tests that are done, and how they came out.
func (r *results) counts() string {
	states := map[string]int{}
	for _, s := range r.chosen {
		if t := r.byName[s.Name]; t != nil && t.done() {
			states[t.State]++
		}
	}
	done := states[passed] + states[failed] + states[skipped]
	return fmt.Sprintf("%d/%d, %d failed", done, len(r.chosen), states[failed])
}

// say prints a test that has ended.
func (r *results) say(t *test, now time.Time) {
	fmt.Printf("[%s, end %s] %-7s %6.1fs %s\n", r.counts(), r.end(now).UTC().Format("15:04"), t.State, t.Seconds, t.Name)
	if t.State == failed {
		fmt.Printf("    %s\n", firstLines(t.Message, 3))
	}
	r.said = now
}

// pulse says what runs when nothing was said for a while.
func (r *results) pulse(now time.Time) {
	if r.said.IsZero() {
		r.said = now
	}
	if now.Sub(r.said) < pulseEvery {
		return
	}
	r.said = now
	var lines []string
	for _, t := range r.over(now, pulseEvery/2) {
		lines = append(lines, fmt.Sprintf("%s %s", now.Sub(t.began).Round(time.Second), t.Name))
	}
	fmt.Printf("[%s, end %s] running: %s\n", r.counts(), r.end(now).UTC().Format("15:04"), strings.Join(lines, "; "))
}

// over are the tests that have been running for longer than that, the longest
// running first.
func (r *results) over(now time.Time, than time.Duration) []*test {
	var over []*test
	for _, t := range r.byName {
		if t.State == running && now.Sub(t.began) > than {
			over = append(over, t)
		}
	}
	slices.SortFunc(over, func(a, b *test) int {
		return cmp.Or(a.began.Compare(b.began), strings.Compare(a.Name, b.Name))
	})
	return over
}
