package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// mostBlob bounds what a registry may send for one blob.
const mostBlob = 2 << 30

// registries pulls images, where their registries can be reached.
type registries struct {
	client http.Client
	scheme string
	// reachable is what was found of each host, tokens what was given by it.
	reachable map[string]bool
	tokens    map[string]string
}

func newRegistries() *registries {
	return &registries{client: http.Client{Timeout: 10 * time.Minute}, scheme: "https",
		reachable: map[string]bool{}, tokens: map[string]string{}}
}

// reference is a full name's parts.
type reference struct{ host, repository, tag string }

func parse(name string) (reference, error) {
	host, rest, ok := strings.Cut(name, "/")
	colon := strings.LastIndex(rest, ":")
	if !ok || colon < 0 {
		return reference{}, fmt.Errorf("%s is not HOST/NAME:TAG", name)
	}
	return reference{host: host, repository: rest[:colon], tag: rest[colon+1:]}, nil
}

// reach tells whether the image's registry answers; each is asked once.
func (r *registries) reach(name string) bool {
	ref, err := parse(name)
	if err != nil {
		return false
	}
	answers, asked := r.reachable[ref.host]
	if !asked {
		short := http.Client{Timeout: 5 * time.Second, Transport: r.client.Transport}
		answer, err := short.Get(r.scheme + "://" + ref.host + "/v2/")
		if err == nil {
			answer.Body.Close()
			answers = answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusUnauthorized
		}
		r.reachable[ref.host] = answers
	}
	return answers
}

// pull writes the registry's own image, of this machine's architecture, into
// an archive.
func (r *registries) pull(name, to string) error {
	ref, err := parse(name)
	if err != nil {
		return err
	}
	data, kind, err := r.get(ref, "manifests/"+ref.tag)
	if err != nil {
		return err
	}
	var many struct {
		Manifests []struct {
			Digest   string `json:"digest"`
			Platform struct {
				Architecture string `json:"architecture"`
				OS           string `json:"os"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(data, &many); err != nil {
		return fmt.Errorf("%s: manifest: %w", name, err)
	}
	if len(many.Manifests) > 0 {
		digest := ""
		for _, m := range many.Manifests {
			if m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH {
				digest = m.Digest
			}
		}
		if digest == "" {
			return fmt.Errorf("%s: there is none for linux/%s", name, runtime.GOARCH)
		}
		if data, kind, err = r.blob(ref, "manifests/", digest); err != nil {
			return err
		}
	}
	var manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return fmt.Errorf("%s: manifest: %w", name, err)
	}
	digest := digestOf(data)
	files := map[string][]byte{"oci-layout": []byte(layout), blobPath(digest): data}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if files[blobPath(d.Digest)], _, err = r.blob(ref, "blobs/", d.Digest); err != nil {
			return err
		}
	}
	files["index.json"], err = json.Marshal(object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []object{{
		"mediaType": kind, "digest": digest, "size": len(data), "annotations": nameAnnotations(name)}}})
	if err != nil {
		return err
	}
	return writeTar(to, files)
}

// blob gets what a digest names, and nothing else.
func (r *registries) blob(ref reference, folder, digest string) (data []byte, kind string, err error) {
	data, kind, err = r.get(ref, folder+digest)
	if err == nil && digestOf(data) != digest {
		err = fmt.Errorf("%s/%s: what came is not %s", ref.host, ref.repository, digest)
	}
	return data, kind, err
}

// get asks a registry, for a token too where it wants one.
func (r *registries) get(ref reference, path string) (data []byte, kind string, err error) {
	address := fmt.Sprintf("%s://%s/v2/%s/%s", r.scheme, ref.host, ref.repository, path)
	for try := 0; ; try++ {
		request, err := http.NewRequest(http.MethodGet, address, nil)
		if err != nil {
			return nil, "", err
		}
		for _, kind := range []string{typeIndex, typeManifest,
			"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"} {
			request.Header.Add("Accept", kind)
		}
		if token := r.tokens[ref.repository]; token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := r.client.Do(request)
		if err != nil {
			return nil, "", err
		}
		data, err := io.ReadAll(io.LimitReader(answer.Body, mostBlob))
		answer.Body.Close()
		switch {
		case err != nil:
			return nil, "", fmt.Errorf("%s: %w", address, err)
		case answer.StatusCode == http.StatusUnauthorized && try == 0:
			if err := r.token(ref, answer.Header.Get("WWW-Authenticate")); err != nil {
				return nil, "", err
			}
		case answer.StatusCode != http.StatusOK:
			return nil, "", fmt.Errorf("%s: %s", address, answer.Status)
		default:
			return data, answer.Header.Get("Content-Type"), nil
		}
	}
}

var challenge = regexp.MustCompile(`(realm|service|scope)="([^"]*)"`)

// token gets what anybody is given to pull from a repository.
func (r *registries) token(ref reference, header string) error {
	fields := map[string]string{}
	for _, found := range challenge.FindAllStringSubmatch(header, -1) {
		fields[found[1]] = found[2]
	}
	from, err := url.Parse(fields["realm"])
	if err != nil || fields["realm"] == "" {
		return fmt.Errorf("%s asks for a token and does not tell from where: %q", ref.host, header)
	}
	query := from.Query()
	query.Set("service", fields["service"])
	query.Set("scope", "repository:"+ref.repository+":pull")
	from.RawQuery = query.Encode()
	answer, err := r.client.Get(from.String())
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var given struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&given); err != nil {
		return fmt.Errorf("token of %s: %w", ref.host, err)
	}
	if given.Token == "" {
		given.Token = given.AccessToken
	}
	r.tokens[ref.repository] = given.Token
	return nil
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// blobPath is where an archive has what a digest names.
func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
