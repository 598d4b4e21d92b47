package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	all := []spec{
		{Name: "[sig-apps] a [Conformance]", Labels: []string{"sig-apps", "Conformance"}},
		{Name: "[sig-node] b [Slow] [Conformance]", Labels: []string{"sig-node", "Slow", "Conformance"}},
		{Name: "[sig-node] c", Labels: []string{"sig-node"}},
	}
	names := filepath.Join(t.TempDir(), "names")
	if err := os.WriteFile(names, []byte("# some\n[sig-node] c\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    options
		want string
	}{
		{options{}, "abc"},
		{options{conformance: true}, "ab"},
		{options{sig: "node"}, "bc"},
		{options{sig: "sig-apps,node", skip: "Slow"}, "ac"},
		{options{focus: `\] a `}, "a"},
		{options{names: names}, "c"},
	} {
		chosen, err := choose(all, c.o)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, s := range chosen {
			got += strings.Fields(s.Name)[1]
		}
		if got != c.want {
			t.Errorf("%+v: %s, wanted %s", c.o, got, c.want)
		}
	}
}

// What a run that was killed left is read again, and nothing that is not known
// to have passed makes the run green.
func TestResume(t *testing.T) {
	r := resumed(t, false, `{"event":"start","name":"[sig-a] passes"}
{"event":"end","name":"[sig-a] passes","state":"passed"}
{"event":"start","name":"[sig-a] skips itself"}
{"event":"end","name":"[sig-a] skips itself","state":"skipped"}
{"event":"start","name":"[sig-b] runs when all is killed"}
{"event":"start","name":"[sig-b] is cut sh`)
	r.chosen = []spec{{Name: "[sig-a] passes"}, {Name: "[sig-a] skips itself"}, {Name: "[sig-b] runs when all is killed"}}
	if parallel, serial := r.left(); len(parallel) != 1 || len(serial) != 0 {
		t.Fatalf("left are %v, %v", parallel, serial)
	}
	if err := r.finish(options{}); err != nil {
		t.Fatal(err)
	}
	if r.green() {
		t.Error("green although a test was not run")
	}
	got := rows(r.Tests)
	if len(got) != 3 || got[2] != (row{Sig: "all", Passed: 1, Skipped: 1, NotRun: 1, Total: 3}) {
		t.Errorf("%+v", got)
	}
	r.Tests = r.Tests[:2]
	if !r.green() {
		t.Error("not green although all passed or skipped itself")
	}
	r.Crashed = []string{"panicked at"}
	if r.green() {
		t.Error("green although a process crashed")
	}
}

// resumed is a run that has these events behind it.
func resumed(t *testing.T, again bool, events string) *results {
	t.Helper()
	r := &results{file: filepath.Join(t.TempDir(), "events.jsonl"), byName: map[string]*test{}}
	if err := os.WriteFile(r.file, []byte(events), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.load(again); err != nil {
		t.Fatal(err)
	}
	return r
}

func at(clock string) string { return `,"time":"2026-01-02T` + clock + `Z"}` + "\n" }

// A test that passes only when it is run again is told apart, and each part of
// a run is counted, noted or not.
func TestAgain(t *testing.T) {
	events := `{"event":"start","name":"[sig-a] x"` + at("10:00:00") +
		`{"event":"end","name":"[sig-a] x","state":"failed","message":"first\nmore"` + at("10:00:30") +
		`{"event":"end","name":"[sig-a] y","state":"failed","message":"other"` + at("10:01:00") +
		`{"event":"start","name":"[sig-a] z"` + at("11:00:00") +
		`{"event":"end","name":"[sig-a] z","state":"passed"` + at("11:00:10")
	r := resumed(t, true, events)
	r.chosen = []spec{{Name: "[sig-a] x"}, {Name: "[sig-a] y"}, {Name: "[sig-a] z"}}
	if parallel, _ := r.left(); len(parallel) != 2 {
		t.Fatalf("%d are run again", len(parallel))
	}
	if err := r.begin(3); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	for _, e := range []event{
		{Event: "start", Name: "[sig-a] x", Time: now},
		{Event: "end", Name: "[sig-a] x", State: passed, Time: now.Add(time.Second)},
	} {
		if err := r.write(e); err != nil {
			t.Fatal(err)
		}
	}
	if x := r.byName["[sig-a] x"]; x.State != passed || len(x.Earlier) != 1 || x.Earlier[0] != "first" {
		t.Errorf("%+v", x)
	}
	ended := []int{2, 1, 1}
	if len(r.Parts) != 3 {
		t.Fatalf("%+v", r.Parts)
	}
	for i, p := range r.Parts {
		if p.Ended != ended[i] {
			t.Errorf("part %d: %+v", i, p)
		}
	}
	if r.Parts[0].Seconds != 60 || r.Parts[2].Procs != 3 {
		t.Errorf("%+v", r.Parts)
	}
	// The same events read anew tell the same.
	data, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	second := resumed(t, false, string(data))
	if x := second.byName["[sig-a] x"]; x.State != passed || len(x.Earlier) != 1 || len(second.Parts) != 3 {
		t.Errorf("%+v, %+v", x, second.Parts)
	}
	if y := second.byName["[sig-a] y"]; y.State != failed {
		t.Errorf("%+v", y)
	}
}

// What ran when the suite's processes ended has failed, unless the runner ended
// them for the sake of a test that was stuck: then only that one has.
func TestInterrupted(t *testing.T) {
	for _, c := range []struct {
		name    string
		stuck   map[string]bool
		stopped bool
		a, b    string
	}{
		{"crash", nil, false, failed, failed},
		{"stuck", map[string]bool{"a": true}, false, failed, notRun},
		{"stopped", nil, true, notRun, notRun},
	} {
		r := &results{file: filepath.Join(t.TempDir(), "events.jsonl"), byName: map[string]*test{}, Stopped: c.stopped}
		long := time.Now().Add(-time.Hour).UTC()
		for _, name := range []string{"a", "b"} {
			if err := r.write(event{Event: "start", Name: name, Time: long}); err != nil {
				t.Fatal(err)
			}
		}
		if over := r.over(time.Now(), 15*time.Minute); len(over) != 2 {
			t.Fatalf("%s: %d run too long", c.name, len(over))
		}
		if err := r.interrupted(c.stuck, 15*time.Minute); err != nil {
			t.Fatal(err)
		}
		if a, b := r.byName["a"], r.byName["b"]; a.State != c.a || b.State != c.b {
			t.Errorf("%s: %s, %s", c.name, a.State, b.State)
		} else if c.stuck != nil && !strings.HasPrefix(a.Message, "time limit") {
			t.Errorf("%s: %s", c.name, a.Message)
		}
	}
}

func TestEstimate(t *testing.T) {
	usual := map[string]float64{"a": 100, "b": 20, "c": 40, "d": 40}
	none := func(string) float64 { return 0 }
	names := func(all ...string) (specs []spec) {
		for _, name := range all {
			specs = append(specs, spec{Name: name})
		}
		return specs
	}
	for _, c := range []struct {
		parallel, serial []spec
		procs            int
		elapsed          func(string) float64
		want             float64
	}{
		{names("b", "c", "d"), nil, 2, none, 50},
		{names("a", "b"), nil, 4, none, 100},
		{names("a"), names("c"), 4, none, 140},
		{names("unknown"), nil, 1, none, 50},
		{names("a"), nil, 1, func(string) float64 { return 99.5 }, 1},
		{nil, nil, 0, none, 0},
	} {
		if got := estimate(c.parallel, c.serial, c.procs, usual, c.elapsed); got != c.want {
			t.Errorf("%v, %v: %v, wanted %v", c.parallel, c.serial, got, c.want)
		}
	}
	if got := longFirst(names("b", "a"), map[string]float64{"a": 300, "b": 50, "c": 900}); strings.Join(got, "") != "ab" {
		t.Errorf("%v", got)
	}
}

func TestCompare(t *testing.T) {
	const file = `<?xml version="1.0"?><testsuites><testsuite name="Kubernetes e2e suite">
<testcase name="[It] [sig-a] one" time="1"></testcase>
<testcase name="[It] [sig-a] two"><failure message="no"></failure></testcase>
<testcase name="[It] [sig-a] three"><skipped message="skipped"></skipped></testcase>
<testcase name="[SynchronizedBeforeSuite]"></testcase></testsuite></testsuites>`
	theirs, err := readJUnit(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ours   map[string]string
		differ int
	}{
		{map[string]string{"[sig-a] one": passed, "[sig-a] two": failed, "[sig-a] three": skipped}, 0},
		{map[string]string{"[sig-a] one": passed, "[sig-a] two": passed}, 1},
		{map[string]string{"[sig-a] one": passed, "[sig-a] three": passed}, 2},
	} {
		if got := difference(c.ours, theirs); len(got.Differ) != c.differ || got.Passed != 1 || got.Failed != 1 {
			t.Errorf("%v: %+v", c.ours, got)
		}
	}
}

func TestFitting(t *testing.T) {
	few := []spec{{Name: "[sig-a] one"}, {Name: "[sig-a] two"}}
	if got := fitting(few); len(got) != 2 {
		t.Errorf("%d of 2 fit", len(got))
	}
	long := spec{Name: strings.Repeat("x", 50<<10)}
	if got := fitting([]spec{long, long, long}); len(got) != 2 {
		t.Errorf("%d of 3 fit", len(got))
	}
	// One that fits nowhere is tried all the same.
	if got := fitting([]spec{{Name: strings.Repeat("x", 200<<10)}, long}); len(got) != 1 {
		t.Errorf("%d of 2 fit", len(got))
	}
}
