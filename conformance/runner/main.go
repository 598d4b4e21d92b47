// Command runner selects specs of upstream's suite, runs them against a
// cluster with Ginkgo, shows how far it is, and writes what came out as JSON,
// JUnit, a page of HTML and, on request, a table in RESULTS.md.
//
// conformance/run calls it, with a cluster of its own or another one.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// spec is one test of the suite.
type spec struct {
	Name   string   `json:"name"`
	Labels []string `json:"labels"`
}

func (s spec) is(label string) bool { return slices.Contains(s.Labels, label) }

// sig is the group that owns the test: sig-node.
func (s spec) sig() string { return sigOf(s.Name) }

func sigOf(name string) string {
	if before, _, ok := strings.Cut(name, "]"); ok && strings.HasPrefix(before, "[") {
		return before[1:]
	}
	return "none"
}

// options are the command line's.
type options struct {
	bin, out, kubeconfig, netns, clusterLog string
	focus, skip, sig, names, record         string
	conformance, list, again, only          bool
	procs                                   int
	pid                                     int
	limit, testLimit                        time.Duration
	extra                                   []string
}

// selects tells whether the command line says which tests to run.
func (o options) selects() bool {
	return o.focus != "" || o.skip != "" || o.sig != "" || o.names != "" || o.conformance
}

// lines are the specs' names, one a line.
func lines(specs []spec) string {
	var b strings.Builder
	for _, s := range specs {
		b.WriteString(s.Name + "\n")
	}
	return b.String()
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "conformance/.build/bin", "folder of e2e.test, ginkgo and kubectl")
	flag.StringVar(&o.out, "out", "", "folder of this run; one that is there is resumed")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "the cluster's administrator")
	flag.StringVar(&o.netns, "netns", "", "network namespace (a name) that the suite runs in")
	flag.StringVar(&o.clusterLog, "cluster-log", "", "the cluster's log, quoted for failures and searched for panics")
	flag.IntVar(&o.pid, "cluster-pid", 0, "process that must outlive the run")
	flag.StringVar(&o.focus, "focus", "", "regular expression of names to run")
	flag.StringVar(&o.skip, "skip", "", "regular expression of names to leave out")
	flag.StringVar(&o.sig, "sig", "", "comma-separated groups: node,apps")
	flag.StringVar(&o.names, "names", "", "file with one name a line")
	flag.BoolVar(&o.conformance, "conformance", false, "only conformance tests")
	flag.BoolVar(&o.list, "list", false, "print the names selected and end")
	flag.BoolVar(&o.only, "report", false, "run nothing; write the reports of what a run did")
	flag.BoolVar(&o.again, "again", false, "when resuming, run those that failed once more")
	flag.IntVar(&o.procs, "procs", 4, "tests at a time, where they allow it")
	flag.DurationVar(&o.limit, "limit", 24*time.Hour, "end the run after this long; what is left counts as not run")
	flag.DurationVar(&o.testLimit, "test-limit", 15*time.Minute, "end a test that takes longer, as failed, and go on")
	flag.StringVar(&o.record, "record", "", "write the numbers to RESULTS.md under this heading")
	swaps := flag.String("swaps", "", "run nothing; collect the clusters of mixed components below this folder")
	against := flag.String("compare", "", "run nothing; compare the run in --out with this JUnit file of upstream's")
	flag.Parse()
	o.extra = flag.Args()
	var green bool
	var err error
	switch {
	case *swaps != "":
		green, err = recordSwaps(*swaps, o)
	case *against != "":
		green, err = compare(*against, o)
	default:
		green, err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !green {
		os.Exit(1)
	}
}

func run(o options) (green bool, err error) {
	all, err := specs(o)
	if err != nil {
		return false, err
	}
	// A run that is resumed is of the same tests, unless others are asked for.
	selection := filepath.Join(o.out, "selected.txt")
	if _, err := os.Stat(selection); err == nil && o.out != "" && !o.selects() {
		o.names = selection
	}
	chosen, err := choose(all, o)
	if err != nil {
		return false, err
	}
	if o.list {
		for _, s := range chosen {
			fmt.Println(s.Name)
		}
		return true, nil
	}
	if len(chosen) == 0 {
		return false, fmt.Errorf("no test is selected")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return false, err
	}
	if err := os.WriteFile(selection, []byte(lines(chosen)), 0o644); err != nil {
		return false, err
	}
	version, err := exec.Command(filepath.Join(o.bin, "e2e.test"), "-version").Output()
	if err != nil {
		return false, fmt.Errorf("e2e.test -version: %w", err)
	}
	r := &results{
		Version: strings.TrimSpace(string(version)),
		file:    filepath.Join(o.out, "events.jsonl"),
		log:     o.clusterLog,
		usual:   usualSeconds(o),
		procs:   o.procs,
		chosen:  chosen,
		byName:  map[string]*test{},
	}
	if err := r.load(o.again); err != nil {
		return false, err
	}
	if !o.only {
		if err := runAll(o, r); err != nil {
			return false, err
		}
	}
	if err := r.finish(o); err != nil {
		return false, err
	}
	r.summary(os.Stdout)
	if err := report(r, all, o); err != nil {
		return false, err
	}
	fmt.Printf("report: %s\n", filepath.Join(o.out, "report.html"))
	return r.green(), nil
}

// runAll runs what is left of the selection: first what may run in parallel,
// then the tests that must be alone.
func runAll(o options, r *results) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	s := suite{o: o, r: r, stop: stop, deadline: time.Now().Add(o.limit)}
	parallel, serial := r.left()
	fmt.Printf("%s: %d tests selected, %d done before, %d to run %d at a time, %d alone\n",
		r.Version, len(r.chosen), len(r.chosen)-len(parallel)-len(serial), len(parallel), o.procs, len(serial))
	if len(parallel)+len(serial) == 0 {
		return nil
	}
	if err := r.begin(o.procs); err != nil {
		return err
	}
	begun := time.Now()
	if err := s.phase(parallel, o.procs); err != nil {
		return err
	}
	if err := s.phase(serial, 1); err != nil {
		return err
	}
	last := &r.Parts[len(r.Parts)-1]
	last.Seconds = time.Since(begun).Seconds()
	return nil
}

// specs lists the whole suite; the list is kept beside the binary.
func specs(o options) ([]spec, error) {
	suite := filepath.Join(o.bin, "e2e.test")
	kept := filepath.Join(o.bin, "specs.jsonl")
	from, err := os.Stat(suite)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(kept); err != nil || info.ModTime().Before(from.ModTime()) {
		list := exec.Command(suite, "-list-specs", "-kubeconfig", os.DevNull)
		list.Stderr = os.Stderr
		out, err := list.Output()
		if err != nil {
			return nil, fmt.Errorf("e2e.test -list-specs: %w", err)
		}
		if err := os.WriteFile(kept, out, 0o644); err != nil {
			return nil, err
		}
	}
	file, err := os.Open(kept)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var all []spec
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// The framework may write warnings among them.
		if !strings.HasPrefix(lines.Text(), "{") {
			continue
		}
		var s spec
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return nil, fmt.Errorf("%s: %w", kept, err)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b spec) int { return strings.Compare(a.Name, b.Name) })
	return all, lines.Err()
}

// choose applies the command line's selection.
func choose(all []spec, o options) ([]spec, error) {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return nil, fmt.Errorf("--focus: %w", err)
	}
	skip, err := regexp.Compile(o.skip)
	if err != nil {
		return nil, fmt.Errorf("--skip: %w", err)
	}
	names := map[string]bool{}
	if o.names != "" {
		text, err := os.ReadFile(o.names)
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				names[line] = true
			}
		}
	}
	sigs := map[string]bool{}
	for _, sig := range strings.FieldsFunc(o.sig, func(c rune) bool { return c == ',' }) {
		sigs["sig-"+strings.TrimPrefix(sig, "sig-")] = true
	}
	var chosen []spec
	for _, s := range all {
		switch {
		case o.conformance && !s.is("Conformance"),
			o.names != "" && !names[s.Name],
			len(sigs) > 0 && !sigs[s.sig()],
			!focus.MatchString(s.Name),
			o.skip != "" && skip.MatchString(s.Name):
		default:
			chosen = append(chosen, s)
			delete(names, s.Name)
		}
	}
	if o.names != "" {
		for name := range names {
			if !slices.ContainsFunc(all, func(s spec) bool { return s.Name == name }) {
				return nil, fmt.Errorf("%s: the suite has no test %q", o.names, name)
			}
		}
	}
	return chosen, nil
}
