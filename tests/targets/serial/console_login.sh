# What stands for getty and login; $FLATSAT_TEST_SHELL is what a user gets.
trap '' INT
while :; do
  stty sane -brkint 2>/dev/null
  printf '\r\nboard login: '
  read -r user || exit 0
  stty -echo
  printf 'Password: '
  read -r password || exit 0
  stty echo
  printf '\r\n'
  if [ "$user" = tester ] && [ "$password" = 'a secret: 17' ]; then
    printf 'Last login: Mon Jan  1 00:00:00 on ttyS0\r\nWelcome to the board.\r\n'
    trap - INT
    exec $FLATSAT_TEST_SHELL
  fi
  printf 'Login incorrect\r\n'
done
