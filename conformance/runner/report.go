package main

import (
	_ "embed"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

//go:embed report.html
var page string

// row is the numbers of one group.
type row struct {
	Sig                                    string
	Passed, Failed, Skipped, NotRun, Total int
	Seconds                                float64
}

// rows counts by group; the last one is the sum.
func rows(tests []*test) []row {
	bySig := map[string]*row{}
	sum := row{Sig: "all"}
	for _, t := range tests {
		sig := sigOf(t.Name)
		if bySig[sig] == nil {
			bySig[sig] = &row{Sig: sig}
		}
		for _, r := range []*row{bySig[sig], &sum} {
			r.Total++
			r.Seconds += t.Seconds
			switch t.State {
			case passed:
				r.Passed++
			case failed:
				r.Failed++
			case skipped:
				r.Skipped++
			default:
				r.NotRun++
			}
		}
	}
	var out []row
	for _, r := range bySig {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b row) int { return strings.Compare(a.Sig, b.Sig) })
	return append(out, sum)
}

// report writes report.json, junit.xml and report.html into the run's folder,
// and RESULTS.md when asked to.
func report(r *results, all []spec, o options) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	// Whole or not at all: a resumed run reads it.
	fresh := filepath.Join(o.out, "report.json.new")
	if err := os.WriteFile(fresh, data, 0o644); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(o.out, "report.json")); err != nil {
		return err
	}
	if err := junit(r, filepath.Join(o.out, "junit.xml")); err != nil {
		return err
	}
	if err := html(r, filepath.Join(o.out, "report.html")); err != nil {
		return err
	}
	if o.record != "" {
		return record(r, all, o)
	}
	return nil
}

func html(r *results, path string) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"sig":      sigOf,
		"duration": func(s float64) string { return time.Duration(s * 1e9).Round(100 * time.Millisecond).String() },
	}).Parse(page)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	// Failures first: they are what one looks for.
	tests := slices.Clone(r.Tests)
	slices.SortStableFunc(tests, func(a, b *test) int { return rank(a) - rank(b) })
	return t.Execute(file, map[string]any{"R": r, "Rows": rows(r.Tests), "Tests": tests, "Green": r.green(), "When": time.Now().UTC().Format("2006-01-02 15:04 UTC")})
}

func rank(t *test) int {
	return slices.Index([]string{failed, notRun, skipped, passed}, t.State)
}

// junit writes the form that CI systems read.
func junit(r *results, path string) error {
	type text struct {
		Message string `xml:"message,attr,omitempty"`
		Body    string `xml:",chardata"`
	}
	type testCase struct {
		XMLName xml.Name `xml:"testcase"`
		Name    string   `xml:"name,attr"`
		Class   string   `xml:"classname,attr"`
		Time    float64  `xml:"time,attr"`
		Failure *text    `xml:"failure,omitempty"`
		Error   *text    `xml:"error,omitempty"`
		Skipped *text    `xml:"skipped,omitempty"`
	}
	suite := struct {
		XMLName  xml.Name `xml:"testsuite"`
		Name     string   `xml:"name,attr"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Errors   int      `xml:"errors,attr"`
		Skipped  int      `xml:"skipped,attr"`
		Time     float64  `xml:"time,attr"`
		Cases    []testCase
	}{
		Name: "Kubernetes e2e suite " + r.Version, Tests: len(r.Tests), Time: r.WallSeconds,
		Failures: count(r.Tests, failed), Errors: count(r.Tests, notRun) + len(r.Crashed), Skipped: count(r.Tests, skipped),
	}
	for _, t := range r.Tests {
		c := testCase{Name: t.Name, Class: sigOf(t.Name), Time: t.Seconds}
		switch t.State {
		case passed:
		case skipped:
			c.Skipped = &text{Message: t.Message}
		case failed:
			c.Failure = &text{Message: t.Message, Body: t.Location + "\n" + t.Log}
		default:
			c.Error = &text{Message: "not run"}
		}
		suite.Cases = append(suite.Cases, c)
	}
	for _, line := range r.Crashed {
		suite.Cases = append(suite.Cases, testCase{Name: "no process crashes", Class: "harness", Error: &text{Message: line}})
	}
	data, err := xml.MarshalIndent(suite, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append([]byte(xml.Header), data...), 0o644)
}

// recorded is what RESULTS.md is made of, one file for each heading.
type recorded struct {
	Title       string   `json:"title"`
	Version     string   `json:"version"`
	Date        string   `json:"date"`
	WallSeconds float64  `json:"wallSeconds"`
	Procs       int      `json:"procs"`
	Crashed     []string `json:"crashed"`
	Rows        []row    `json:"rows"`
	// Failed has the failures' names with the first line of each message.
	Failed map[string]string `json:"failed"`
}

// record keeps the numbers of the conformance tests, all of them: one that was
// not selected counts as not run.
func record(r *results, all []spec, o options) error {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	home := filepath.Dir(filepath.Dir(bin)) // conformance/.build/bin
	byName := map[string]*test{}
	for _, t := range r.Tests {
		byName[t.Name] = t
	}
	kept := recorded{Title: o.record, Version: r.Version, Date: time.Now().UTC().Format("2006-01-02 15:04"),
		WallSeconds: r.WallSeconds, Procs: o.procs, Crashed: r.Crashed, Failed: map[string]string{}}
	var tests []*test
	for _, s := range all {
		if !s.is("Conformance") {
			continue
		}
		t := byName[s.Name]
		if t == nil {
			t = &test{Name: s.Name, State: notRun}
		}
		tests = append(tests, t)
		if t.State == failed {
			kept.Failed[t.Name] = reason(t.Message, home, o.kubeconfig)
		}
	}
	kept.Rows = rows(tests)
	folder := filepath.Join(home, "results")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(kept, "", " ")
	if err != nil {
		return err
	}
	file := strings.ReplaceAll(strings.ToLower(o.record), " ", "-") + ".json"
	if err := os.WriteFile(filepath.Join(folder, file), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return resultsPage(folder, filepath.Join(home, "RESULTS.md"))
}

// reason is a failure's first line, without what only this machine knows.
func reason(message, home, kubeconfig string) string {
	line := firstLines(message, 1)
	if kubeconfig != "" {
		line = strings.ReplaceAll(line, kubeconfig, "KUBECONFIG")
	}
	line = strings.ReplaceAll(line, home, "conformance")
	if runes := []rune(line); len(runes) > 200 {
		line = string(runes[:200]) + "..."
	}
	return line
}

// resultsPage writes RESULTS.md from every heading's numbers.
func resultsPage(folder, to string) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("# Results of upstream's conformance tests\n\nWritten by `conformance/run --record`; not by hand. A test that was not run is not passed.\n")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var k recorded
		if err := json.Unmarshal(data, &k); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		fmt.Fprintf(&b, "\n## %s\n\nSuite %s, %s UTC, %s with %d tests at a time.\n\n", k.Title, k.Version, k.Date,
			time.Duration(k.WallSeconds*1e9).Round(time.Second), k.Procs)
		b.WriteString("| group | passed | failed | skipped | not run | of |\n| --- | ---: | ---: | ---: | ---: | ---: |\n")
		for _, r := range k.Rows {
			fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n", r.Sig, r.Passed, r.Failed, r.Skipped, r.NotRun, r.Total)
		}
		if len(k.Crashed) > 0 {
			fmt.Fprintf(&b, "\nCrashes, so the run is not green whatever passed: %d.\n\n", len(k.Crashed))
			for _, line := range k.Crashed {
				fmt.Fprintf(&b, "- `%s`\n", line)
			}
		}
		if len(k.Failed) > 0 {
			b.WriteString("\nFailed:\n\n")
			for _, name := range sortedKeys(k.Failed) {
				fmt.Fprintf(&b, "- %s: `%s`\n", name, strings.ReplaceAll(k.Failed[name], "`", "'"))
			}
		}
	}
	return os.WriteFile(to, []byte(b.String()), 0o644)
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
