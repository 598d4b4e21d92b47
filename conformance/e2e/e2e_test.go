// Package e2e is upstream's end-to-end suite as one test binary of our own.
//
// It takes all flags of upstream's e2e.test, whose packages it imports, and
// adds what the harness needs: -results FILE appends one line of JSON for each
// spec as it starts and as it ends, from every parallel process, so that a run
// can be watched, resumed after a kill, and reported without scraping its
// output; -test-limit ends each spec that takes longer, -long FILE names those
// that are to start first; -images prints the images that the suite names,
// -list-specs each spec's name and labels. Where upstream's flag
// -progress-report-url asks for it, progress is posted there.
package e2e

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"k8s.io/component-base/version"
	conformance "k8s.io/kubernetes/test/conformance/testdata"
	upstream "k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	fixtures "k8s.io/kubernetes/test/fixtures"
	"k8s.io/kubernetes/test/utils/image"

	// The feature names must be complete before any spec is registered.
	_ "k8s.io/kubernetes/test/e2e/feature"

	// The specs.
	_ "k8s.io/kubernetes/test/e2e/apimachinery"
	_ "k8s.io/kubernetes/test/e2e/apps"
	_ "k8s.io/kubernetes/test/e2e/architecture"
	_ "k8s.io/kubernetes/test/e2e/auth"
	_ "k8s.io/kubernetes/test/e2e/autoscaling"
	_ "k8s.io/kubernetes/test/e2e/common"
	_ "k8s.io/kubernetes/test/e2e/dra"
	_ "k8s.io/kubernetes/test/e2e/instrumentation"
	_ "k8s.io/kubernetes/test/e2e/invariants"
	_ "k8s.io/kubernetes/test/e2e/kubectl"
	_ "k8s.io/kubernetes/test/e2e/lifecycle"
	_ "k8s.io/kubernetes/test/e2e/network"
	_ "k8s.io/kubernetes/test/e2e/node"
	_ "k8s.io/kubernetes/test/e2e/scheduling"
	_ "k8s.io/kubernetes/test/e2e/storage"
	_ "k8s.io/kubernetes/test/e2e/storage/csimock"

	// What the framework does after a failure.
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/utils/format"
)

// resultsFile is where the lines go; empty for nowhere.
var resultsFile string

// event is one line of the results file.
type event struct {
	// Event is "start" or "end".
	Event string `json:"event"`
	Name  string `json:"name"`
	// Time is when this was written, UTC.
	Time time.Time `json:"time"`
	// State is Ginkgo's: passed, failed, skipped, timedout, panicked,
	// interrupted, aborted.
	State string `json:"state,omitempty"`
	// Seconds is how long the spec took.
	Seconds float64 `json:"seconds,omitempty"`
	// Message is the failure's, or the skip's reason.
	Message string `json:"message,omitempty"`
	// Location is the file and line of the failure.
	Location string   `json:"location,omitempty"`
	Labels   []string `json:"labels,omitempty"`
	// Process is the parallel process, from 1.
	Process int `json:"process"`
	// Log is the end of what the spec printed; only of those that failed.
	Log string `json:"log,omitempty"`
}

// logTail is how many bytes of a failed spec's output are kept.
const logTail = 16 << 10

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	limit := flag.Duration("test-limit", 0, "end a spec that takes longer than this as failed; 0 for no limit")
	long := flag.String("long", "", "file of names, one a line: these specs start before others, the first of them first")
	flag.StringVar(&resultsFile, "results", "", "append a line of JSON to this file as each spec starts and ends")
	showVersion := flag.Bool("version", false, "print the version of the suite and exit")
	showImages := flag.Bool("images", false, "print id and name of each image that the suite names and exit")
	listSpecs := flag.Bool("list-specs", false, "print a line of JSON with name and labels of each spec and exit")
	listConformance := flag.Bool("list-conformance-tests", false, "print the conformance tests' YAML and exit")
	flag.Parse()
	if flag.NArg() > 0 {
		fatal(fmt.Errorf("arguments not understood: %q", flag.Args()))
	}

	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	testfiles.AddFileSource(fixtures.GetTestFixturesFS())
	testfiles.AddFileSource(conformance.GetConformanceTestdataFS())

	switch {
	case *showVersion:
		fmt.Println(version.Get())
	case *showImages:
		printImages()
	case *listSpecs:
		printSpecs()
	case *listConformance:
		data, err := testfiles.Read("test/conformance/testdata/conformance.yaml")
		if err != nil {
			fatal(err)
		}
		os.Stdout.Write(data)
	default:
		framework.AfterReadingAllFlags(&framework.TestContext)
		if root := framework.TestContext.RepoRoot; root != "" {
			testfiles.AddFileSource(testfiles.RootFileSource{Root: root})
		}
		if err := decorate(*limit, *long); err != nil {
			fatal(err)
		}
		follow()
		os.Exit(m.Run())
	}
	os.Exit(0)
}

// TestE2E runs the specs that the flags select.
func TestE2E(t *testing.T) {
	upstream.RunE2ETests(t)
}

// decorate gives each spec its limit of time and its place in the order. It
// must be called before Ginkgo builds the suite's tree, which happens as the
// test runs.
func decorate(limit time.Duration, long string) error {
	var first []string
	if long != "" {
		text, err := os.ReadFile(long)
		if err != nil {
			return err
		}
		first = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	ginkgo.AddTreeConstructionNodeArgsTransformer(func(node types.NodeType, _ ginkgo.Offset, text string, args []any) (string, []any, []error) {
		if node != types.NodeTypeIt {
			return text, args, nil
		}
		if limit > 0 && takesContext(args) {
			args = append(args, ginkgo.SpecTimeout(limit))
		}
		// A node knows only the last part of its spec's name.
		if i := slices.IndexFunc(first, func(name string) bool { return strings.HasSuffix(name, " "+text) }); i >= 0 {
			args = append(args, ginkgo.SpecPriority(len(first)-i))
		}
		return text, args, nil
	})
	return nil
}

// takesContext tells whether a node's body can be told to end, and has no
// limit of its own.
func takesContext(args []any) bool {
	context := false
	for _, arg := range args {
		switch arg.(type) {
		case ginkgo.SpecTimeout, ginkgo.NodeTimeout:
			return false
		}
		if t := reflect.TypeOf(arg); t != nil && t.Kind() == reflect.Func && t.NumIn() > 0 && t.NumOut() == 0 {
			context = true
		}
	}
	return context
}

// follow registers what writes the events. It must be called after the
// framework's own look at the suite, which makes Ginkgo forget such nodes.
func follow() {
	ginkgo.ReportBeforeEach(func(report ginkgo.SpecReport) {
		// A spec that the flags leave out is skipped before it starts.
		if report.State == types.SpecStateSkipped || report.State == types.SpecStatePending {
			return
		}
		write(event{Event: "start", Name: report.FullText(), Process: ginkgo.GinkgoParallelProcess()})
	})

	ginkgo.ReportAfterEach(func(report ginkgo.SpecReport) {
		// Left out by the flags: a spec that skips itself gives a reason.
		if report.State.Is(types.SpecStateSkipped|types.SpecStatePending) && report.Failure.Message == "" {
			return
		}
		e := event{
			Event:    "end",
			Name:     report.FullText(),
			State:    report.State.String(),
			Seconds:  report.RunTime.Seconds(),
			Message:  report.Failure.Message,
			Labels:   report.Labels(),
			Process:  ginkgo.GinkgoParallelProcess(),
			Location: report.FailureLocation().String(),
		}
		if report.State == types.SpecStateTimedout {
			e.Message = "time limit: " + e.Message
		}
		if report.Failed() {
			out := report.CapturedStdOutErr + report.CapturedGinkgoWriterOutput
			if len(out) > logTail {
				out = out[len(out)-logTail:]
			}
			e.Log = strings.ToValidUTF8(out, "?")
		} else {
			e.Location = ""
		}
		write(e)
	})
	if url := framework.TestContext.ProgressReportURL; url != "" {
		post(url)
	}
}

// progress is what upstream's suite posts to a progress URL.
type progress struct {
	Message   string   `json:"msg"`
	Total     int      `json:"total"`
	Completed int      `json:"completed"`
	Skipped   int      `json:"skipped"`
	Failed    int      `json:"failed"`
	Failures  []string `json:"failures,omitempty"`
}

// post reports to a URL as specs end: each parallel process on its own. What
// does not arrive is no failure of the suite.
func post(url string) {
	now := progress{}
	client := http.Client{Timeout: 10 * time.Second}
	send := func(message string) {
		now.Message = message
		body, err := json.Marshal(now)
		if err != nil {
			return
		}
		if answer, err := client.Post(url, "application/json", bytes.NewReader(body)); err == nil {
			answer.Body.Close()
		}
	}
	ginkgo.ReportBeforeSuite(func(report ginkgo.Report) {
		now.Total = report.PreRunStats.SpecsThatWillRun
		send("Test Suite starting")
	})
	ginkgo.ReportAfterEach(func(report ginkgo.SpecReport) {
		switch {
		case report.State.Is(types.SpecStateSkipped | types.SpecStatePending):
			now.Skipped++
			return
		case report.Failed():
			now.Failed++
			now.Failures = append(now.Failures, report.FullText())
			send("FAILED " + report.FullText())
		default:
			now.Completed++
			send("PASSED " + report.FullText())
		}
	})
}

// write appends one line in a single call, so that lines of parallel
// processes do not mix.
func write(e event) {
	if resultsFile == "" {
		return
	}
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		fatal(err)
	}
	f, err := os.OpenFile(resultsFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(append(line, '\n')); err != nil {
		fatal(err)
	}
}

// printSpecs prints the whole suite without running it.
func printSpecs() {
	out := json.NewEncoder(os.Stdout)
	for _, spec := range ginkgo.PreviewSpecs("").SpecReports {
		if spec.LeafNodeType != types.NodeTypeIt {
			continue
		}
		if err := out.Encode(map[string]any{"name": spec.FullText(), "labels": spec.Labels()}); err != nil {
			fatal(err)
		}
	}
}

// printImages prints the full name of each image, sorted.
func printImages() {
	var lines []string
	for _, config := range image.GetImageConfigs() {
		lines = append(lines, config.GetE2EImage())
	}
	slices.Sort(lines)
	for _, line := range slices.Compact(lines) {
		fmt.Println(line)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
