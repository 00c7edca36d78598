/* Does nothing, and ends: the least that starting a program costs. */
int main(void)
{
	return 0;
}
