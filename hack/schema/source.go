package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// markers are the `+name=value` lines of a comment.
type markers [][2]string

func (m markers) has(name string) bool {
	for _, kv := range m {
		if kv[0] == name {
			return true
		}
	}
	return false
}

func (m markers) get(name string) string {
	if all := m.all(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

func (m markers) all(name string) (values []string) {
	for _, kv := range m {
		if kv[0] == name {
			values = append(values, kv[1])
		}
	}
	return values
}

func parseMarkers(groups ...*ast.CommentGroup) (m markers) {
	for _, g := range groups {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			line := strings.TrimSpace(strings.TrimPrefix(c.Text, "//"))
			if rest, ok := strings.CutPrefix(line, "+"); ok {
				name, value, _ := strings.Cut(rest, "=")
				m = append(m, [2]string{strings.TrimSpace(name), strings.TrimSpace(value)})
			}
		}
	}
	return m
}

// typeDoc holds the markers of a type and of its fields.
type typeDoc struct {
	markers markers
	fields  map[string]markers
}

type pkg struct {
	types     map[string]*typeDoc
	constants map[string]string
	// The texts that constants of a type have, by the type.
	values map[string][]string
}

// source reads the comments of packages, which reflection does not see.
type source struct {
	pkgs map[string]*pkg
}

func newSource() *source { return &source{pkgs: map[string]*pkg{}} }

// of returns the markers of a named type; none for one that has no source.
func (s *source) of(t reflect.Type) (*typeDoc, error) {
	if t.PkgPath() == "" {
		return &typeDoc{}, nil
	}
	p, err := s.load(t.PkgPath())
	if err != nil {
		return nil, err
	}
	if doc, ok := p.types[t.Name()]; ok {
		return doc, nil
	}
	return &typeDoc{}, nil
}

// enum gives the texts that a type marked `+enum` may have, sorted; none for others.
func (s *source) enum(t reflect.Type) ([]string, error) {
	doc, err := s.of(t)
	if err != nil || !doc.markers.has("enum") || t.Kind() != reflect.String {
		return nil, err
	}
	values := slices.Clone(s.pkgs[t.PkgPath()].values[t.Name()])
	slices.Sort(values)
	for i, v := range values {
		if strings.ContainsAny(v, "%,\n") {
			return nil, fmt.Errorf("value %q of %s does not fit into the facts", v, t)
		}
		values[i] = strings.ReplaceAll(v, " ", "%20")
	}
	return slices.Compact(values), nil
}

func (s *source) load(path string) (*pkg, error) {
	if p, ok := s.pkgs[path]; ok {
		return p, nil
	}
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", path, err)
	}
	p := &pkg{types: map[string]*typeDoc{}, constants: map[string]string{}, values: map[string][]string{}}
	s.pkgs[path] = p
	root := strings.TrimSpace(string(dir))
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Name()
		if ok, _ := build.Default.MatchFile(root, name); !ok || !strings.HasSuffix(name, ".go") ||
			strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "zz_generated") || name == "generated.pb.go" {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, filepath.Join(root, name), nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if err := s.read(p, fset, file); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *source) read(p *pkg, fset *token.FileSet, file *ast.File) error {
	// A comment may be parted from its type by one empty line.
	ends := map[int]*ast.CommentGroup{}
	for _, g := range file.Comments {
		ends[fset.Position(g.End()).Line] = g
	}
	for _, d := range file.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				if err := s.keep(p, file, spec); err != nil {
					return err
				}
			case *ast.TypeSpec:
				first := gen.Pos()
				if gen.Doc != nil {
					first = gen.Doc.Pos()
				}
				before := ends[fset.Position(first).Line-2]
				doc := &typeDoc{markers: parseMarkers(before, gen.Doc, spec.Doc), fields: map[string]markers{}}
				p.types[spec.Name.Name] = doc
				if st, ok := spec.Type.(*ast.StructType); ok {
					for _, f := range st.Fields.List {
						for _, name := range fieldNames(f) {
							doc.fields[name] = parseMarkers(f.Doc)
						}
					}
				}
			}
		}
	}
	return nil
}

// keep takes constants that are texts: `A = "a"`, `A T = "a"`, `A = T("a")` and `A = T(other.B)`.
func (s *source) keep(p *pkg, file *ast.File, spec *ast.ValueSpec) error {
	for i, name := range spec.Names {
		if i >= len(spec.Values) {
			continue
		}
		typ, value := spec.Type, spec.Values[i]
		if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 1 {
			typ, value = call.Fun, call.Args[0]
		}
		text, ok, err := s.text(file, value)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		p.constants[name.Name] = text
		if typ, ok := typ.(*ast.Ident); ok {
			p.values[typ.Name] = append(p.values[typ.Name], text)
		}
	}
	return nil
}

// text is a literal, or a constant of a package that the file imports.
func (s *source) text(file *ast.File, value ast.Expr) (string, bool, error) {
	switch value := value.(type) {
	case *ast.BasicLit:
		if value.Kind == token.STRING {
			text, err := strconv.Unquote(value.Value)
			return text, err == nil, nil
		}
	case *ast.SelectorExpr:
		from, ok := value.X.(*ast.Ident)
		if !ok {
			break
		}
		for _, imported := range file.Imports {
			path, err := strconv.Unquote(imported.Path.Value)
			if err != nil || imported.Name == nil || imported.Name.Name != from.Name || !strings.HasPrefix(path, "k8s.io/") {
				continue
			}
			other, err := s.load(path)
			if err != nil {
				return "", false, err
			}
			text, ok := other.constants[value.Sel.Name]
			return text, ok, nil
		}
	}
	return "", false, nil
}

func fieldNames(f *ast.Field) (names []string) {
	for _, n := range f.Names {
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		t := f.Type
		if star, ok := t.(*ast.StarExpr); ok {
			t = star.X
		}
		switch t := t.(type) {
		case *ast.Ident:
			names = append(names, t.Name)
		case *ast.SelectorExpr:
			names = append(names, t.Sel.Name)
		}
	}
	return names
}

// constant gives a default as JSON; `ref(Name)` is a constant of the field's package.
func (s *source) constant(def string, f reflect.StructField, from string) (string, error) {
	if name, ok := strings.CutPrefix(def, "ref("); ok {
		name = strings.TrimSuffix(name, ")")
		for path, p := range s.pkgs {
			if v, ok := p.constants[name]; ok && strings.HasSuffix(strings.ReplaceAll(path, "/", "."), strings.TrimPrefix(from[:strings.LastIndex(from, ".")], "io.k8s.")) {
				text, err := json.Marshal(v)
				return string(text), err
			}
		}
		return "", fmt.Errorf("default %s: no such constant", def)
	}
	var v any
	if err := json.Unmarshal([]byte(def), &v); err != nil {
		return "", fmt.Errorf("default %s: %w", def, err)
	}
	text, err := json.Marshal(v)
	return string(text), err
}
