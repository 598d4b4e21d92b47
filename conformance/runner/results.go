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

// event is a line that e2e.test appends to its results file, which documents it.
type event struct {
	Event    string    `json:"event"`
	Name     string    `json:"name"`
	Time     time.Time `json:"time"`
	State    string    `json:"state"`
	Seconds  float64   `json:"seconds"`
	Message  string    `json:"message"`
	Location string    `json:"location"`
	Log      string    `json:"log"`
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

	logStart int64
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

// results is a run: what report.json has.
type results struct {
	Version     string   `json:"version"`
	WallSeconds float64  `json:"wallSeconds"`
	Crashed     []string `json:"crashed"`
	Stopped     bool     `json:"stopped"`
	Tests       []*test  `json:"tests"`

	file, log    string
	offset       int64
	chosen       []spec
	byName       map[string]*test
	stoppedAt    time.Time
	quiet        bool
	began        time.Time
	total, ended int
	failures     int
	procs        int
}

// load reads what an earlier part of this run left; with again, those that
// failed are forgotten.
func (r *results) load(again bool) error {
	old, err := os.ReadFile(filepath.Join(filepath.Dir(r.file), "report.json"))
	if err == nil {
		var before results
		if err := json.Unmarshal(old, &before); err != nil {
			return fmt.Errorf("report.json: %w", err)
		}
		r.WallSeconds, r.Crashed = before.WallSeconds, before.Crashed
		for _, t := range before.Tests {
			if t.done() {
				r.byName[t.Name] = t
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.quiet = true
	r.follow()
	r.quiet = false
	for name, t := range r.byName {
		if !t.done() || again && t.State == failed {
			delete(r.byName, name)
		}
	}
	return nil
}

// phase begins a part of the run, for the progress lines.
func (r *results) phase(total, procs int) {
	r.began, r.total, r.procs, r.ended = time.Now(), total, procs, 0
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
	if e.Event == "start" {
		r.byName[e.Name] = &test{Name: e.Name, State: running, logStart: size(r.log)}
		return
	}
	t := r.byName[e.Name]
	if t == nil {
		t = &test{Name: e.Name, logStart: size(r.log)}
		r.byName[e.Name] = t
	}
	if r.quiet && t.done() && t.State != running && t.ClusterLog != "" {
		return // report.json has it, with the cluster's log.
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
	if r.quiet {
		return
	}
	r.ended++
	if t.State == failed {
		r.failures++
		t.ClusterLog = clusterTail(r.log, t.logStart, t.Log)
	}
	left := time.Duration(float64(time.Since(r.began)) / float64(r.ended) * float64(r.total-r.ended))
	fmt.Printf("[%d/%d, %d failed, end %s] %-7s %6.1fs %s\n", r.ended, r.total, r.failures,
		time.Now().Add(left).UTC().Format("15:04"), t.State, t.Seconds, t.Name)
	if t.State == failed {
		fmt.Printf("    %s\n", firstLines(t.Message, 3))
	}
}

func (r *results) stop(why string) {
	if !r.Stopped {
		fmt.Printf("stopping: %s\n", why)
		r.Stopped, r.stoppedAt = true, time.Now()
	}
}

// interrupted settles what was running when the suite's processes ended.
func (r *results) interrupted() {
	for _, t := range r.byName {
		if t.State != running {
			continue
		}
		if r.Stopped {
			t.State = notRun
			continue
		}
		t.State = failed
		t.Message = "the suite's process ended while this test ran"
	}
}

var panicLine = regexp.MustCompile(`panicked at|^panic: |SIGSEGV|fatal runtime error`)

// finish fills in the tests that were not run, and what crashed.
func (r *results) finish(o options) error {
	r.Tests = nil
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
