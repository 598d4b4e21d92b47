package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// compared is how two runs of the same tests differ.
type compared struct {
	Tests  int      `json:"tests"`
	Passed int      `json:"passed"`
	Failed int      `json:"failed"`
	Differ []string `json:"differ,omitempty"`
}

// compare holds the JUnit file of a run from inside the cluster against this
// harness's own report of the same selection.
func compare(file string, o options) (same bool, err error) {
	in, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer in.Close()
	theirs, err := readJUnit(in)
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	var run results
	if err := readJSON(filepath.Join(o.out, "report.json"), &run); err != nil {
		return false, err
	}
	ours := map[string]string{}
	for _, t := range run.Tests {
		ours[t.Name] = t.State
	}
	c := difference(ours, theirs)
	fmt.Printf("%d tests ran in either; inside the cluster %d passed and %d failed; %d differ\n", c.Tests, c.Passed, c.Failed, len(c.Differ))
	for _, line := range c.Differ {
		fmt.Println("  " + line)
	}
	if o.record != "" {
		kept := recorded{Title: o.record, Version: run.Version, Date: time.Now().UTC().Format("2006-01-02 15:04"), Compared: &c}
		if err := keep(kept, o); err != nil {
			return false, err
		}
	}
	return len(c.Differ) == 0 && c.Tests > 0 && c.Failed == 0, nil
}

// readJUnit is the state of each test in a JUnit file of upstream's: skipped
// ones are those that were not selected, and nodes that are no tests have
// names of their own in brackets.
func readJUnit(in io.Reader) (map[string]string, error) {
	type mark struct{}
	type testCase struct {
		Name    string `xml:"name,attr"`
		Failure *mark  `xml:"failure"`
		Error   *mark  `xml:"error"`
		Skipped *mark  `xml:"skipped"`
	}
	type suite struct {
		Cases []testCase `xml:"testcase"`
	}
	var file struct {
		XMLName xml.Name
		Suites  []suite    `xml:"testsuite"`
		Cases   []testCase `xml:"testcase"`
	}
	if err := xml.NewDecoder(in).Decode(&file); err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, s := range append(file.Suites, suite{Cases: file.Cases}) {
		for _, c := range s.Cases {
			name, isTest := strings.CutPrefix(c.Name, "[It] ")
			switch {
			case !isTest, c.Skipped != nil:
			case c.Failure != nil, c.Error != nil:
				states[name] = failed
			default:
				states[name] = passed
			}
		}
	}
	return states, nil
}

// difference compares the tests that ran in either.
func difference(ours, theirs map[string]string) compared {
	var c compared
	names := map[string]bool{}
	for name, state := range ours {
		// A test that skips itself is as absent there.
		names[name] = names[name] || state == passed || state == failed
	}
	for name := range theirs {
		names[name] = true
	}
	for name, ran := range names {
		if !ran {
			continue
		}
		c.Tests++
		switch theirs[name] {
		case passed:
			c.Passed++
		case failed:
			c.Failed++
		}
		if ours[name] != theirs[name] {
			c.Differ = append(c.Differ, fmt.Sprintf("%s: %s here, %s inside", name, orNotRun(ours[name]), orNotRun(theirs[name])))
		}
	}
	slices.Sort(c.Differ)
	return c
}

func orNotRun(state string) string {
	if state == "" {
		return notRun
	}
	return state
}

// writeCompared adds the comparison to RESULTS.md.
func (k recorded) writeCompared(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\nSuite %s, %s UTC. The conformance image, driven from inside the cluster, against `conformance/run` on the same tests:\n"+
		"%d tests ran, %d passed and %d failed inside; %d differ.\n", k.Title, k.Version, k.Date,
		k.Compared.Tests, k.Compared.Passed, k.Compared.Failed, len(k.Compared.Differ))
	for i, line := range k.Compared.Differ {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(b, "- %s\n", line)
	}
}
