// Command images builds, without an image registry, the images that upstream's
// suite asks for: OCI archives whose names are the very ones that the suite
// prints (e2e.test -images, on standard input), made of Debian's packages and
// of programs that conformance/build makes, as images.yaml describes.
//
//	e2e.test -images | images -out DIR -base DIR [-only NAMES] [-check]
package main

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"
)

// recipe is one entry of images.yaml, which describes the fields.
type recipe struct {
	Internal   bool              `json:"internal"`
	Base       string            `json:"base"`
	Packages   []string          `json:"packages"`
	Copy       []string          `json:"copy"`
	Programs   map[string]string `json:"programs"`
	Module     map[string]string `json:"module"`
	Archive    string            `json:"archive"`
	Busybox    bool              `json:"busybox"`
	Links      map[string]string `json:"links"`
	Folders    map[string]int    `json:"folders"`
	Modes      map[string]int    `json:"modes"`
	Texts      map[string]string `json:"texts"`
	Entrypoint []string          `json:"entrypoint"`
	Command    []string          `json:"command"`
	User       string            `json:"user"`
	Ports      []string          `json:"ports"`
	Check      []string          `json:"check"`
}

// builder holds what is the same for all images.
type builder struct {
	recipes map[string]recipe
	// here is the conformance folder, work the ignored folder in it, base has
	// the archives that the cluster itself needs.
	here, work, base string
	layers           map[string][]byte
}

func main() {
	here := flag.String("conformance", "conformance", "the conformance folder")
	out := flag.String("out", "", "folder for the archives")
	base := flag.String("base", "", "folder with the archives that the cluster itself needs, such as the pause image")
	only := flag.String("only", "", "comma-separated names of entries; all others stay away")
	check := flag.Bool("check", false, "unpack each image and run its check")
	flag.Parse()
	if *out == "" {
		fail(fmt.Errorf("-out is missing"))
	}
	root, err := filepath.Abs(*here)
	if err != nil {
		fail(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "images/images.yaml"))
	if err != nil {
		fail(err)
	}
	b := builder{here: root, work: filepath.Join(root, ".build"), base: *base, layers: map[string][]byte{}}
	if err := yaml.UnmarshalStrict(text, &b.recipes); err != nil {
		fail(fmt.Errorf("images.yaml: %w", err))
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		fail(err)
	}
	var wanted []string
	if *only != "" {
		wanted = strings.Split(*only, ",")
	}
	failed := false
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		name := lines.Text()
		entry := b.entry(name)
		if wanted != nil && !slices.Contains(wanted, entry) {
			continue
		}
		if entry == "" {
			fmt.Printf("missing  %s\n", name)
			continue
		}
		path := filepath.Join(*out, strings.NewReplacer("/", "_", ":", "-").Replace(name)+".tar")
		if _, err := os.Stat(path); err == nil {
			fmt.Printf("present  %s\n", name)
			continue
		}
		err := b.build(name, entry, path)
		if err == nil && *check {
			err = b.check(entry)
		}
		if err != nil {
			fmt.Printf("failed   %s: %v\n", name, err)
			os.Remove(path)
			failed = true
			continue
		}
		fmt.Printf("built    %s\n", name)
	}
	if failed {
		os.Exit(1)
	}
}

// entry is the recipe of an image's full name; empty when there is none. Only
// a repository's last part decides, so that no registry is named here; images
// below another image's name (volume/nfs) have none.
func (b *builder) entry(image string) string {
	// Their pull has to fail: for lack of credentials, or of a registry.
	if strings.Contains(image, "authenticated") || strings.Contains(image, "invalid") {
		return ""
	}
	name := image[strings.LastIndex(image, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	if r, ok := b.recipes[name]; ok && !r.Internal {
		return name
	}
	return ""
}

func (b *builder) build(name, entry, path string) error {
	r := b.recipes[entry]
	if r.Archive != "" {
		found, err := filepath.Glob(filepath.Join(b.base, r.Archive))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d archives are called %s in %q", len(found), r.Archive, b.base)
		}
		return renameArchive(found[0], path, name)
	}
	var layers [][]byte
	for _, part := range b.chain(entry) {
		layer, err := b.layer(part)
		if err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		layers = append(layers, layer)
	}
	return writeArchive(path, name, r, layers)
}

// chain is the entry's bases, from the first layer on, and itself.
func (b *builder) chain(entry string) []string {
	var chain []string
	for ; entry != ""; entry = b.recipes[entry].Base {
		chain = append(chain, entry)
	}
	slices.Reverse(chain)
	return chain
}

// layer makes an entry's own layer, once.
func (b *builder) layer(entry string) ([]byte, error) {
	if layer, ok := b.layers[entry]; ok {
		return layer, nil
	}
	r := b.recipes[entry]
	t := tree{}
	for path, mode := range r.Folders {
		t.folder(path, mode)
	}
	if r.Busybox {
		if err := t.busybox(); err != nil {
			return nil, err
		}
	}
	if len(r.Packages) > 0 {
		root, err := unpack(r.Packages, filepath.Join(b.work, "packages"))
		if err != nil {
			return nil, err
		}
		if err := t.copyFrom(root, r.Copy); err != nil {
			return nil, err
		}
	}
	for path, program := range r.Programs {
		build := exec.Command(filepath.Join(b.here, "build"), program)
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build %s: %w", program, err)
		}
		if err := t.file(path, filepath.Join(b.work, "bin", program), 0o755); err != nil {
			return nil, err
		}
	}
	for path, source := range r.Module {
		module, file, _ := strings.Cut(source, "//")
		list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
		list.Dir = b.here
		dir, err := list.Output()
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", module, err)
		}
		if err := t.file(path, filepath.Join(strings.TrimSpace(string(dir)), file), 0o644); err != nil {
			return nil, err
		}
	}
	for path, text := range r.Texts {
		t.add(path, node{mode: 0o644, data: []byte(text)})
	}
	for path, to := range r.Links {
		t.add(path, node{mode: 0o777, link: to})
	}
	for path, mode := range r.Modes {
		n := t[path]
		n.mode = int64(mode)
		t[path] = n
	}
	layer, err := t.tar()
	if err != nil {
		return nil, err
	}
	b.layers[entry] = layer
	return layer, nil
}

// check unpacks the entry's layers and runs its command in them.
func (b *builder) check(entry string) error {
	command := b.recipes[entry].Check
	if len(command) == 0 {
		return nil
	}
	root, err := os.MkdirTemp(b.work, "check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	for _, part := range b.chain(entry) {
		untar := exec.Command("tar", "-x", "-C", root)
		untar.Stdin = strings.NewReader(string(b.layers[part]))
		if out, err := untar.CombinedOutput(); err != nil {
			return fmt.Errorf("unpack: %s", out)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		return err
	}
	null := syscall.Mknod(filepath.Join(root, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3)
	if null != nil {
		return fmt.Errorf("/dev/null: %w", null)
	}
	run := exec.Command(command[0], command[1:]...)
	run.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	run.Dir = "/"
	run.Env = []string{"PATH=" + searchPath}
	if out, err := run.CombinedOutput(); err != nil {
		return fmt.Errorf("check %q: %v: %s", command, err, out)
	}
	return nil
}

// sorted is a map's keys in order.
func sorted[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
