package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	folder := t.TempDir()
	file := filepath.Join(folder, "events.jsonl")
	lines := `{"event":"start","name":"[sig-a] passes"}
{"event":"end","name":"[sig-a] passes","state":"passed"}
{"event":"start","name":"[sig-a] skips itself"}
{"event":"end","name":"[sig-a] skips itself","state":"skipped"}
{"event":"start","name":"[sig-b] runs when all is killed"}
{"event":"start","name":"[sig-b] is cut sh`
	if err := os.WriteFile(file, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &results{file: file, byName: map[string]*test{}, chosen: []spec{
		{Name: "[sig-a] passes"}, {Name: "[sig-a] skips itself"}, {Name: "[sig-b] runs when all is killed"},
	}}
	if err := r.load(false); err != nil {
		t.Fatal(err)
	}
	if len(r.byName) != 2 {
		t.Fatalf("%d tests are known to be done", len(r.byName))
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
