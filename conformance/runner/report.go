package main

import (
	_ "embed"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html/template"
	"math"
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
		"parts":    parts,
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
	Procs       int      `json:"procs,omitempty"`
	Parts       []part   `json:"parts,omitempty"`
	Crashed     []string `json:"crashed,omitempty"`
	Rows        []row    `json:"rows,omitempty"`
	// Failed has the failures' names with the first line of each message.
	Failed map[string]string `json:"failed,omitempty"`
	// Again has what passed only when it was run again, with its first failure.
	Again map[string]string `json:"again,omitempty"`
	// Seconds is how long each test that passed took.
	Seconds map[string]float64 `json:"seconds,omitempty"`
	// Swaps and Compared are there when the heading is about them instead.
	Swaps    []swapped `json:"swaps,omitempty"`
	Compared *compared `json:"compared,omitempty"`
}

// home is the conformance folder: the programs are in .build/bin below it.
func home(o options) string {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		bin = o.bin
	}
	return filepath.Dir(filepath.Dir(bin))
}

// record keeps the numbers of the conformance tests, all of them: one that was
// not selected counts as not run.
func record(r *results, all []spec, o options) error {
	byName := map[string]*test{}
	for _, t := range r.Tests {
		byName[t.Name] = t
	}
	kept := recorded{Title: o.record, Version: r.Version, Date: time.Now().UTC().Format("2006-01-02 15:04"),
		WallSeconds: r.WallSeconds, Procs: o.procs, Parts: r.Parts, Crashed: r.Crashed,
		Failed: map[string]string{}, Again: map[string]string{}, Seconds: map[string]float64{}}
	for _, p := range r.Parts {
		kept.Date = p.Begun.Format("2006-01-02 15:04")
		if len(r.Parts) == 1 && p.Procs > 0 {
			kept.Procs = p.Procs
		}
	}
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
		switch {
		case t.State == failed:
			kept.Failed[t.Name] = reason(t.Message, home(o), o.kubeconfig)
		case t.State == passed:
			kept.Seconds[t.Name] = math.Round(t.Seconds*10) / 10
			if len(t.Earlier) > 0 {
				kept.Again[t.Name] = reason(t.Earlier[0], home(o), o.kubeconfig)
			}
		}
	}
	kept.Rows = rows(tests)
	return keep(kept, o)
}

// keep writes a heading's numbers, and RESULTS.md anew.
func keep(kept recorded, o options) error {
	folder := filepath.Join(home(o), "results")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(kept, "", " ")
	if err != nil {
		return err
	}
	file := strings.ReplaceAll(strings.ToLower(kept.Title), " ", "-") + ".json"
	if err := os.WriteFile(filepath.Join(folder, file), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return resultsPage(folder, filepath.Join(home(o), "RESULTS.md"))
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
		switch {
		case k.Swaps != nil:
			k.writeSwaps(&b)
			continue
		case k.Compared != nil:
			k.writeCompared(&b)
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\nSuite %s, %s UTC, %s.%s\n\n", k.Title, k.Version, k.Date, wall(k), parts(k.Parts))
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
		list(&b, "Failed", k.Failed)
		list(&b, "Passed only when run again; failed at first with", k.Again)
	}
	return os.WriteFile(to, []byte(b.String()), 0o644)
}

// wall is the time that the run took, and how many tests ran at a time.
func wall(k recorded) string {
	text := seconds(k.WallSeconds)
	if len(k.Parts) < 2 {
		text += fmt.Sprintf(" with %d tests at a time", k.Procs)
	}
	return text
}

func seconds(n float64) string {
	return time.Duration(n * float64(time.Second)).Round(time.Second).String()
}

// parts tells of a run that was resumed when that was, and how much ran then.
func parts(all []part) string {
	if len(all) < 2 {
		return ""
	}
	var texts []string
	for _, p := range all {
		text := fmt.Sprintf("%s %d tests in %s", p.Begun.UTC().Format("2006-01-02 15:04"), p.Ended, seconds(p.Seconds))
		if p.Procs > 0 {
			text += fmt.Sprintf(", %d at a time", p.Procs)
		}
		texts = append(texts, text)
	}
	return fmt.Sprintf(" In %d parts: %s.", len(all), strings.Join(texts, "; "))
}

// list adds a list of tests with a message of each.
func list(b *strings.Builder, title string, tests map[string]string) {
	if len(tests) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n\n", title)
	for _, name := range sortedKeys(tests) {
		fmt.Fprintf(b, "- %s: `%s`\n", name, strings.ReplaceAll(tests[name], "`", "'"))
	}
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
