package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// swapped is what came of one cluster of mixed components: conformance/swap
// writes the first part as swap.json, beside the report of the tests.
type swapped struct {
	// Whose is "ours" or "theirs": who made the one component that differs.
	Whose     string `json:"whose"`
	Component string `json:"component"`
	// Up tells that both nodes became ready; UpSeconds is how long it took.
	Up        bool    `json:"up"`
	UpSeconds float64 `json:"upSeconds"`
	// Order is the place in the table.
	Order int `json:"order"`

	Passed  int               `json:"passed"`
	Of      int               `json:"of"`
	Seconds float64           `json:"seconds"`
	Crashed int               `json:"crashed"`
	Failed  map[string]string `json:"failed,omitempty"`
}

// recordSwaps collects the clusters below a folder into RESULTS.md; good tells
// that each came up and passed all its tests.
func recordSwaps(folder string, o options) (good bool, err error) {
	files, err := filepath.Glob(filepath.Join(folder, "*", "swap.json"))
	if err != nil {
		return false, err
	}
	if len(files) == 0 {
		return false, fmt.Errorf("%s has no swap.json below it", folder)
	}
	kept := recorded{Title: o.record, Date: time.Now().UTC().Format("2006-01-02 15:04")}
	good = true
	for _, file := range files {
		var s swapped
		if err := readJSON(file, &s); err != nil {
			return false, err
		}
		var run results
		err := readJSON(filepath.Join(filepath.Dir(file), "report.json"), &run)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err == nil {
			kept.Version = run.Version
			s.add(&run, o)
		}
		good = good && s.Up && s.Of > 0 && s.Passed == s.Of && s.Crashed == 0
		kept.Swaps = append(kept.Swaps, s)
		kept.WallSeconds += s.UpSeconds + s.Seconds
	}
	slices.SortFunc(kept.Swaps, func(a, b swapped) int { return a.Order - b.Order })
	var page strings.Builder
	kept.writeSwaps(&page)
	fmt.Print(page.String())
	if o.record == "" {
		return good, nil
	}
	return good, keep(kept, o)
}

func (s *swapped) add(run *results, o options) {
	s.Passed, s.Of = count(run.Tests, passed), len(run.Tests)
	s.Seconds, s.Crashed = run.WallSeconds, len(run.Crashed)
	s.Failed = map[string]string{}
	for _, t := range run.Tests {
		if t.State == failed {
			s.Failed[t.Name] = reason(t.Message, home(o), o.kubeconfig)
		}
	}
}

// writeSwaps adds the table of swaps to RESULTS.md.
func (k recorded) writeSwaps(b *strings.Builder) {
	fmt.Fprintf(b, "\n## %s\n\nSuite %s, %s UTC, %s in all. Each row is a cluster of two nodes on an etcd in which one component\n"+
		"is ours and the other four are upstream's, or the other way round, and a slice of the suite on it.\n\n",
		k.Title, k.Version, k.Date, seconds(k.WallSeconds))
	b.WriteString("| one component | the other four | comes up in | passed | of | in |\n| --- | --- | ---: | ---: | ---: | ---: |\n")
	for _, s := range k.Swaps {
		others := map[string]string{"ours": "upstream's", "theirs": "ours"}[s.Whose]
		whose := map[string]string{"ours": "our", "theirs": "upstream's"}[s.Whose]
		up := "does not"
		if s.Up {
			up = seconds(s.UpSeconds)
		}
		fmt.Fprintf(b, "| %s %s | %s | %s | %d | %d | %s |\n", whose, s.Component, others, up, s.Passed, s.Of, seconds(s.Seconds))
	}
	for _, s := range k.Swaps {
		list(b, fmt.Sprintf("Failed with %s %s", s.Whose, s.Component), s.Failed)
	}
}

func readJSON(file string, into any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}
