// Command images builds, without an image registry, the images that upstream's
// suite asks for: OCI archives whose names are the very ones that the suite
// prints (e2e.test -images, on standard input), made of Debian's packages and
// of programs that conformance/build makes, as images.yaml describes.
//
//	e2e.test -images | images -out DIR -base DIR [-only NAMES] [-check] [-pull]
//
// An archive that is there stays while its recipe and the programs in it are
// the same. With -check each image is unpacked from its archive and its check
// run, also of those that are there already.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
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
	Absent     string            `json:"absent"`
}

// builder holds what is the same for all images.
type builder struct {
	recipes map[string]recipe
	// here is the conformance folder, work the ignored folder in it, base has
	// the archives that the cluster itself needs.
	here, work, base string
	layers           map[string][]byte
	// programs that were built, by name.
	programs map[string]string
	// registries to pull from first; nil for none.
	registries *registries
}

func main() {
	here := flag.String("conformance", "conformance", "the conformance folder")
	out := flag.String("out", "", "folder for the archives")
	base := flag.String("base", "", "folder with the archives that the cluster itself needs, such as the pause image")
	only := flag.String("only", "", "comma-separated names of entries; all others stay away")
	real := flag.Bool("pull", false, "use the registries' own images where a registry can be reached")
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
	b := builder{here: root, work: filepath.Join(root, ".build"), base: *base,
		layers: map[string][]byte{}, programs: map[string]string{}}
	if *real {
		b.registries = newRegistries()
	}
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
		entry, why := b.entry(name)
		switch {
		case wanted != nil && !slices.Contains(wanted, entry):
		case why != "":
			fmt.Printf("absent   %s: %s\n", name, why)
		case entry == "":
			fmt.Printf("missing  %s: images.yaml says nothing of it\n", name)
			failed = true
		default:
			path := filepath.Join(*out, strings.NewReplacer("/", "_", ":", "-").Replace(name)+".tar")
			what, err := b.provide(name, entry, path, *check)
			if err != nil {
				fmt.Printf("failed   %s: %v\n", name, err)
				os.Remove(path)
				failed = true
				continue
			}
			fmt.Printf("%-8s %s\n", what, name)
		}
	}
	if failed {
		os.Exit(1)
	}
}

// entry is the recipe of an image's full name; empty when there is none. Only
// a repository's last part decides, so that no registry is named here. When a
// part of the name is that of an absent entry, why is its reason.
func (b *builder) entry(image string) (entry, why string) {
	parts := strings.Split(image, "/")
	last := len(parts) - 1
	parts[last], _, _ = strings.Cut(parts[last], ":")
	for _, part := range parts {
		if r := b.recipes[part]; r.Absent != "" {
			return part, r.Absent
		}
	}
	if r, ok := b.recipes[parts[last]]; ok && !r.Internal {
		return parts[last], ""
	}
	return "", ""
}

// provide builds the image unless it is there as the recipe now has it.
func (b *builder) provide(name, entry, path string, check bool) (what string, err error) {
	stamp := path + ".recipe"
	if b.registries != nil && b.registries.reach(name) {
		return b.pull(name, path, stamp)
	}
	key, err := b.key(name, entry)
	if err != nil {
		return "", err
	}
	what = "present"
	have, _ := os.ReadFile(stamp) // None is as good as another.
	_, missing := os.Stat(path)
	fresh := missing != nil || string(have) != key
	if fresh {
		what = "built"
		os.Remove(stamp)
		if err := b.build(name, entry, path); err != nil {
			return "", err
		}
	}
	if check {
		what += ", checked"
		if err := b.check(entry, path); err != nil {
			return "", err
		}
	}
	if fresh {
		err = os.WriteFile(stamp, []byte(key), 0o644)
	}
	return what, err
}

// pull gets the registry's own image, once.
func (b *builder) pull(name, path, stamp string) (what string, err error) {
	const pulled = "pulled\n"
	have, _ := os.ReadFile(stamp) // None is as good as another.
	if _, missing := os.Stat(path); missing == nil && string(have) == pulled {
		return "present", nil
	}
	os.Remove(stamp)
	if err := b.registries.pull(name, path); err != nil {
		return "", err
	}
	return "pulled", os.WriteFile(stamp, []byte(pulled), 0o644)
}

// key stands for all that an image is made of: the recipes of its layers, and
// the programs in them.
func (b *builder) key(name, entry string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, name)
	for _, part := range b.chain(entry) {
		r := b.recipes[part]
		text, err := json.Marshal(r)
		if err != nil {
			return "", err
		}
		sum.Write(text)
		programs := slices.Collect(maps.Values(r.Programs))
		if r.Busybox {
			programs = append(programs, "busybox")
		}
		slices.Sort(programs)
		for _, program := range programs {
			path, err := b.program(program)
			if err != nil {
				return "", err
			}
			info, err := os.Stat(path)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(sum, program, info.Size(), info.ModTime().UnixNano())
		}
	}
	return fmt.Sprintf("%x\n", sum.Sum(nil)), nil
}

// program is the path of a program that conformance/build makes.
func (b *builder) program(name string) (string, error) {
	if path, ok := b.programs[name]; ok {
		return path, nil
	}
	build := exec.Command(filepath.Join(b.here, "build"), name)
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	b.programs[name] = filepath.Join(b.work, "bin", name)
	return b.programs[name], nil
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
		path, err := b.program("busybox")
		if err != nil {
			return nil, err
		}
		if err := t.busybox(path); err != nil {
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
		from, err := b.program(program)
		if err != nil {
			return nil, err
		}
		if err := t.file(path, from, 0o755); err != nil {
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

// check unpacks an image and runs the entry's command in it.
func (b *builder) check(entry, path string) error {
	command := b.recipes[entry].Check
	if len(command) == 0 {
		return nil
	}
	root, err := os.MkdirTemp(b.work, "check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	layers, err := readLayers(path)
	if err != nil {
		return err
	}
	for _, layer := range layers {
		untar := exec.Command("tar", "-x", "-C", root)
		untar.Stdin = bytes.NewReader(layer)
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
