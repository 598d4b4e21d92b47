package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is a line of the results file. e2e.test, which documents them, appends
// "start" and "end" of tests; the runner "part", as it begins to run tests, and
// the end of a test whose process was ended.
type event struct {
	Event    string    `json:"event"`
	Name     string    `json:"name,omitempty"`
	Time     time.Time `json:"time"`
	State    string    `json:"state,omitempty"`
	Seconds  float64   `json:"seconds,omitempty"`
	Message  string    `json:"message,omitempty"`
	Location string    `json:"location,omitempty"`
	Log      string    `json:"log,omitempty"`
	Procs    int       `json:"procs,omitempty"`
}

// part is one stretch of a run: a run that is resumed has several.
type part struct {
	Begun   time.Time `json:"begun"`
	Seconds float64   `json:"seconds"`
	// Procs is how many tests ran at a time; 0 when that was not noted.
	Procs int `json:"procs"`
	// Ended is how many tests ended in it.
	Ended int `json:"ended"`
}

// test is what is known of one test.
type test struct {
	Name     string  `json:"name"`
	State    string  `json:"state"`
	Seconds  float64 `json:"seconds"`
	Message  string  `json:"message,omitempty"`
	Location string  `json:"location,omitempty"`
	// Log is the end of the test's own output, ClusterLog what the cluster
	// logged meanwhile about the test's namespace, or simply last.
	Log        string `json:"log,omitempty"`
	ClusterLog string `json:"clusterLog,omitempty"`
	// Earlier has how the test failed before it was run again.
	Earlier []string `json:"earlier,omitempty"`

	logStart int64
	began    time.Time
}

// States of a test; whatever else Ginkgo says counts as failed.
const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped"
	notRun  = "not run"
	running = "running"
)

// done tells that the test need not run when the run is resumed.
func (t *test) done() bool {
	return t.State == passed || t.State == failed || t.State == skipped
}

// pause is how long after any event a new part has begun also when none was
// noted: longer than a test may take.
const pause = 25 * time.Minute

// results is a run: what report.json has.
type results struct {
	Version     string   `json:"version"`
	WallSeconds float64  `json:"wallSeconds"`
	Parts       []part   `json:"parts"`
	Crashed     []string `json:"crashed"`
	Stopped     bool     `json:"stopped"`
	Tests       []*test  `json:"tests"`

	file, log string
	offset    int64
	chosen    []spec
	byName    map[string]*test
	stoppedAt time.Time
	// quiet while events of an earlier part are read again.
	quiet bool
	procs int
	usual map[string]float64
	said  time.Time
	// latest is the time of the last event.
	latest time.Time
}

// load reads what earlier parts of this run left: what ran is in the events,
// report.json adds what only the runner knew. With again, those that failed
// are to run once more.
func (r *results) load(again bool) error {
	r.quiet = true
	r.follow()
	r.quiet = false
	old, err := os.ReadFile(filepath.Join(filepath.Dir(r.file), "report.json"))
	if err == nil {
		var before results
		if err := json.Unmarshal(old, &before); err != nil {
			return fmt.Errorf("report.json: %w", err)
		}
		r.remember(&before)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name, t := range r.byName {
		switch {
		case again && t.State == failed:
			r.byName[name] = &test{Name: name, State: notRun, Earlier: append(t.Earlier, firstLines(t.Message, 1))}
		case !t.done():
			// It ran when all was killed.
			r.byName[name] = &test{Name: name, State: notRun, Earlier: t.Earlier}
		}
	}
	return nil
}

// remember takes from an earlier report what the events do not tell.
func (r *results) remember(before *results) {
	r.Crashed = before.Crashed
	for _, old := range before.Tests {
		if t := r.byName[old.Name]; t != nil && t.State == old.State && t.Seconds == old.Seconds {
			t.ClusterLog = old.ClusterLog
		}
	}
	for i, p := range before.Parts {
		if i < len(r.Parts) {
			r.Parts[i].Seconds = p.Seconds
		}
	}
}

// begin notes in the events that a part of the run begins.
func (r *results) begin(procs int) error {
	r.follow()
	return r.write(event{Event: "part", Time: time.Now().UTC(), Procs: procs})
}

// write appends to the events, which are taken in at once.
func (r *results) write(e event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(r.file, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	// A process that was killed may have left half a line.
	if info, err := file.Stat(); err == nil && info.Size() > r.offset {
		line = append([]byte("\n"), line...)
	}
	if _, err := file.Write(append(line, '\n')); err != nil {
		return err
	}
	r.follow()
	return nil
}

// follow takes in what was appended to the results file since the last call.
func (r *results) follow() {
	file, err := os.Open(r.file)
	if err != nil {
		return // Not there yet.
	}
	defer file.Close()
	if _, err := file.Seek(r.offset, io.SeekStart); err != nil {
		return
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return
	}
	for {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			return
		}
		r.offset += int64(len(line)) + 1
		data = rest
		var e event
		if json.Unmarshal(line, &e) == nil {
			r.take(e)
		}
	}
}

func (r *results) take(e event) {
	if e.Event == "part" || len(r.Parts) == 0 || e.Time.Sub(r.latest) > pause {
		r.Parts = append(r.Parts, part{Begun: e.Time, Procs: e.Procs})
	}
	r.latest = e.Time
	now := &r.Parts[len(r.Parts)-1]
	now.Seconds = e.Time.Sub(now.Begun).Seconds()
	if e.Event == "part" {
		return
	}
	t := r.byName[e.Name]
	if t == nil {
		t = &test{Name: e.Name, State: notRun}
		r.byName[e.Name] = t
	}
	if e.Event == "start" {
		earlier := t.Earlier
		if t.State == failed {
			earlier = append(earlier, firstLines(t.Message, 1))
		}
		r.byName[e.Name] = &test{Name: e.Name, State: running, Earlier: earlier, began: e.Time, logStart: size(r.log)}
		return
	}
	t.State, t.Seconds, t.Message, t.Location, t.Log = e.State, e.Seconds, e.Message, e.Location, e.Log
	switch e.State {
	case passed, skipped:
	case "interrupted":
		t.State = running // It is neither passed nor failed, and runs again when resumed.
		return
	default:
		t.State = failed
	}
	now.Ended++
	if r.quiet {
		return
	}
	if t.State == failed {
		t.ClusterLog = clusterTail(r.log, t.logStart, t.Log)
	}
	r.say(t, time.Now())
}

func (r *results) stop(why string) {
	if !r.Stopped {
		fmt.Printf("stopping: %s\n", why)
		r.Stopped, r.stoppedAt = true, time.Now()
	}
}

// interrupted settles what was running when the suite's processes ended: those
// that were stuck have failed, and so has what ran when a process ended by
// itself; when the runner ended the processes, all others run again.
func (r *results) interrupted(stuck map[string]bool, limit time.Duration) error {
	for _, t := range r.over(time.Now(), 0) {
		switch {
		case stuck[t.Name]:
			if err := r.fail(t, fmt.Sprintf("time limit: it did not end after %s, nor when told to", limit)); err != nil {
				return err
			}
		case r.Stopped, len(stuck) > 0:
			t.State = notRun
		default:
			if err := r.fail(t, "the suite's process ended while this test ran"); err != nil {
				return err
			}
		}
	}
	return nil
}

// fail ends a test in the place of its process.
func (r *results) fail(t *test, message string) error {
	now := time.Now().UTC()
	return r.write(event{Event: "end", Name: t.Name, Time: now, State: failed,
		Seconds: now.Sub(t.began).Seconds(), Message: message})
}

var panicLine = regexp.MustCompile(`panicked at|^panic: |SIGSEGV|fatal runtime error`)

// finish fills in the tests that were not run, and what crashed.
func (r *results) finish(o options) error {
	r.Tests, r.WallSeconds = nil, 0
	for _, p := range r.Parts {
		r.WallSeconds += p.Seconds
	}
	for _, s := range r.chosen {
		if r.byName[s.Name] == nil {
			r.byName[s.Name] = &test{Name: s.Name, State: notRun}
		}
	}
	// Those of an earlier part of this run too, when it chose others.
	for _, t := range r.byName {
		r.Tests = append(r.Tests, t)
	}
	slices.SortFunc(r.Tests, func(a, b *test) int { return strings.Compare(a.Name, b.Name) })
	if r.log != "" {
		text, err := os.ReadFile(r.log)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if panicLine.MatchString(line) && !slices.Contains(r.Crashed, line) {
				r.Crashed = append(r.Crashed, line)
			}
		}
	}
	return nil
}

// count is how many tests are in a state.
func count(tests []*test, state string) int {
	n := 0
	for _, t := range tests {
		if t.State == state {
			n++
		}
	}
	return n
}

// green is true only when each test selected has passed or was skipped by
// itself and no process crashed.
func (r *results) green() bool {
	return len(r.Crashed) == 0 && count(r.Tests, failed) == 0 && count(r.Tests, notRun) == 0 && count(r.Tests, passed) > 0
}

func (r *results) summary(w io.Writer) {
	fmt.Fprintf(w, "passed %d, failed %d, skipped %d, not run %d of %d in %s\n", count(r.Tests, passed), count(r.Tests, failed),
		count(r.Tests, skipped), count(r.Tests, notRun), len(r.Tests), time.Duration(r.WallSeconds*1e9).Round(time.Second))
	for _, line := range r.Crashed {
		fmt.Fprintf(w, "crashed: %s\n", line)
	}
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// The framework's names of namespaces end in a number.
var namespaceName = regexp.MustCompile(`namespace "?([a-z0-9-]+-[0-9]+)"?`)

// clusterTail is what the cluster logged from an offset on: the lines that
// name the test's namespace when there are any, or the last.
func clusterTail(path string, from int64, testLog string) string {
	const most = 40
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	if _, err := file.Seek(from, io.SeekStart); err != nil {
		return ""
	}
	data, err := io.ReadAll(io.LimitReader(file, 64<<20))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	for _, found := range namespaceName.FindAllStringSubmatch(testLog, -1) {
		var about []string
		for _, line := range lines {
			if strings.Contains(line, found[1]) {
				about = append(about, line)
			}
		}
		if len(about) > 0 {
			lines = about
			break
		}
	}
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

func firstLines(text string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(text), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n    ")
}
