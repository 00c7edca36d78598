// Package rpc makes gRPC connections to engines' unix sockets, for the sources that speak it. It keeps no state; whoever dials owns the
// connection.
package rpc

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Dial makes a connection to the engine behind a socket. patience bounds each attempt to reach it, maxMessage an answer, in bytes. That
// nobody is there is said at once and as the kernel says it (no socket, no permission, nobody listens), which is clearer than gRPC's way.
func Dial(ctx context.Context, address string, patience time.Duration, maxMessage int) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: patience}).DialContext(ctx, "unix", address)
	}
	probe, err := dial(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithDisableServiceConfig(), grpc.WithAuthority("localhost"))
}
